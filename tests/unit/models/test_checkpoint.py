"""Files of networks and of training checkpoints."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoint import (
    PROGRAM,
    SPEC,
    WEIGHTS,
    CheckpointError,
    export,
    load_forms,
    load_network,
    load_spec,
    load_tensors,
    save_forms,
    save_network,
    save_tensors,
)
from models.forms import Form
from models.networks.build import build_network
from models.spec import ImageTask, NetworkSpec, Vit, dense_network
from models.structures import BlockDiagonal, Gblr, LowRank, Rectangle

RECTANGLES = (
    Rectangle(row_start=5, row_count=9, column_start=12, column_count=7, rank=2),
    Rectangle(row_start=0, row_count=2, column_start=1, column_count=3, rank=1),
    Rectangle(row_start=3, row_count=2, column_start=15, column_count=3, rank=2),
)


def network() -> tuple[NetworkSpec, torch.nn.Module]:
    """A transformer with every structure in it."""
    task = ImageTask(channels=1, height=8, width=8, classes=10)
    spec = dense_network(Vit(patch=4, width=16, depth=1, heads=2), task).with_structures(
        {
            "blocks.0.qkv": LowRank(rank=3),
            "blocks.0.proj": Gblr(rectangles=RECTANGLES),
            "blocks.0.up": BlockDiagonal(blocks=3),
            "blocks.0.down": Gblr(rectangles=()),
        }
    )
    return spec, build_network(spec, generator=torch.Generator().manual_seed(2)).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_comes_back_as_it_was_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    spec, module = network()
    module.to(dtype)
    save_network(tmp_path / "new", spec, module)
    loaded = load_network(tmp_path / "new")
    x = images(3).to(dtype)
    assert torch.equal(loaded(x), module(x))
    assert load_spec(tmp_path / "new") == spec
    assert not loaded.training


def test_an_export_runs_in_plain_torch_at_any_batch_size(tmp_path: Path) -> None:
    spec, module = network()
    export(tmp_path, spec, module, images(2))
    save_file({"x": images(5), "y": module(images(5)).detach()}, tmp_path / "expected.safetensors")
    script = f"""
import sys, torch
from safetensors.torch import load_file
expected = load_file({str(tmp_path / "expected.safetensors")!r})
program = torch.export.load({str(tmp_path / PROGRAM)!r}).module()
torch.testing.assert_close(program(expected["x"]), expected["y"])
assert program(expected["x"][:1]).shape == (1, 10)
assert "models" not in sys.modules
"""
    # A folder without the packages, and -I without the environment: only what is installed.
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, check=True)
    assert torch.equal(load_network(tmp_path)(images(5)), module(images(5)))
    assert {path.name for path in tmp_path.iterdir()} >= {SPEC, WEIGHTS, PROGRAM}


def test_an_export_leaves_the_module_in_its_mode(tmp_path: Path) -> None:
    spec, module = network()
    export(tmp_path, spec, module.train(), images(2))
    assert module.training


def test_an_example_of_one_is_refused(tmp_path: Path) -> None:
    spec, module = network()
    with pytest.raises(ValueError, match="example holds 1 inputs, but export needs at least 2"):
        export(tmp_path, spec, module, images(1))


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    spec, module = network()
    other = spec.with_structures({"blocks.0.qkv": LowRank(rank=4)})
    save_network(tmp_path, spec, module)
    (tmp_path / SPEC).write_text(other.model_dump_json())
    with pytest.raises(CheckpointError, match=r"blocks\.0\.qkv\.row_factor"):
        load_network(tmp_path)


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    spec, module = network()
    other = spec.model_copy(update={"layers": spec.layers[1:]})
    save_network(tmp_path, spec, module)
    (tmp_path / SPEC).write_text(other.model_dump_json())
    with pytest.raises(CheckpointError, match="the layers are not those of a vit network"):
        load_network(tmp_path)


def test_a_spec_of_other_layers_is_not_saved(tmp_path: Path) -> None:
    spec, module = network()
    other = spec.with_structures({"blocks.0.qkv": LowRank(rank=4)})
    with pytest.raises(ValueError, match=r"blocks\.0\.qkv of the network is .*, but in spec .* 4"):
        save_network(tmp_path / "new", other, module)
    fewer = spec.model_copy(update={"layers": spec.layers[1:]})
    with pytest.raises(ValueError, match="but spec has no layer of that name"):
        save_network(tmp_path / "new", fewer, module)
    assert not (tmp_path / "new").exists()


def test_layers_tied_by_hand_are_not_saved_for_they_would_part(tmp_path: Path) -> None:
    spec, module = network()
    values = dict(module.named_parameters())
    one, two = next(
        (a, b) for a, b in combinations(values, 2) if values[a].shape == values[b].shape
    )
    holder, _, name = two.rpartition(".")
    setattr(module.get_submodule(holder), name, values[one])
    with pytest.raises(ValueError, match=f"{one} and {two} of the network are one tensor, but"):
        save_network(tmp_path / "new", spec, module)
    assert not (tmp_path / "new").exists()


def test_what_would_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    spec, module = network()
    with pytest.raises(ValueError, match=r"spec has a tensor positions, 4 x 16, but the network"):
        save_network(tmp_path / "new", spec, torch.nn.Linear(3, 3))
    module.add_module("extra", torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"network has a tensor extra\.\w+, but spec has none"):
        save_network(tmp_path / "new", spec, module)
    module.add_module("extra", None)
    module.register_parameter("positions", torch.nn.Parameter(torch.zeros(4, 15)))
    with pytest.raises(ValueError, match="positions of the network is 4 x 15, but in spec 4 x 16"):
        save_network(tmp_path / "new", spec, module)
    with pytest.raises(TypeError, match=r"network is a NoneType, but this admits a torch\.nn\.M"):
        save_network(tmp_path / "new", spec, None)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_folder_may_be_named_by_its_path_in_words(tmp_path: Path) -> None:
    spec, module = network()
    folder = str(tmp_path / "new")
    export(folder, spec, module, images(2))
    save_forms(folder, {"blocks.0.qkv": "structured"})
    assert load_spec(folder) == spec
    assert load_forms(folder) == {"blocks.0.qkv": "structured"}
    assert torch.equal(load_network(folder)(images(3)), module(images(3)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    spec, module = network()
    save_network(tmp_path, spec, module)
    tensors, _ = load_tensors(tmp_path / WEIGHTS)
    del tensors["head.weight"]
    save_tensors(tmp_path / WEIGHTS, tensors)
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        load_network(tmp_path)


@pytest.mark.parametrize("name", [SPEC, WEIGHTS])
def test_missing_and_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    save_network(tmp_path, *network())
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=name):
        load_network(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} does not exist"):
        load_network(tmp_path)


def test_the_forms_of_layers_lie_beside_the_network(tmp_path: Path) -> None:
    spec, module = network()
    save_network(tmp_path, spec, module)
    with pytest.raises(CheckpointError, match=r"forms\.json does not exist"):
        load_forms(tmp_path)
    forms: dict[str, Form] = {"blocks.0.qkv": "structured", "blocks.0.proj": "packed"}
    save_forms(tmp_path, forms)
    assert load_forms(tmp_path) == forms
    assert torch.equal(load_network(tmp_path)(images(3)), module(images(3)))
    for wrong in ({"blocks.0.qkv": "structure"}, {"blocks.0.qkv": None}):
        with pytest.raises(ValueError, match=r"form of blocks\.0\.qkv is .* are .*'structured'"):
            save_forms(tmp_path, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"forms is \['dense'\], but this admits forms by the"):
        save_forms(tmp_path, ["dense"])  # type: ignore[arg-type]
    assert load_forms(tmp_path) == forms
    (tmp_path / "forms.json").write_text('{"blocks.0.qkv": "fast"}')
    with pytest.raises(CheckpointError, match="does not say in which form layers run"):
        load_forms(tmp_path)


def test_tensors_and_values_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    tensors = {
        "step": torch.tensor(3),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "empty": torch.empty(0),
        "state": torch.arange(5, dtype=torch.uint8),
    }
    values = {"epoch": 2, "curve": [[1, 0.1 + 0.2]], "name": "größer"}
    save_tensors(path, tensors, values)
    loaded, found = load_tensors(path)
    assert found == values
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype == tensors[name].dtype for name in tensors)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"epoch": 1})
    shared = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors(path, {"a": shared, "b": shared}, {"epoch": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tensors(path, {"a": torch.ones(2)}, {"loss": float("nan")})
    assert load_tensors(path)[1] == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_spec_is_readable_json(tmp_path: Path) -> None:
    spec, module = network()
    save_network(tmp_path, spec, module)
    text = (tmp_path / SPEC).read_text()
    assert json.loads(text) == spec.model_dump(mode="json")
    assert len(text.splitlines()) > 20
