"""Files of tensors and JSON, never pickles: training checkpoints, networks and their exports."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.durable import replace_file
from models.forms import Form, check_forms
from models.networks.build import build_network, check_network
from models.spec import NetworkSpec

T = TypeVar("T")

WEIGHTS, SPEC, PROGRAM = "network.safetensors", "network.json", "network.pt2"
FORMS = "forms.json"
_FORMS = TypeAdapter(dict[str, Form])
# The one key of a safetensors header under which all JSON travels: several would be written in
# another order each time.
VALUES = "values"
# Its member for what a disk has changed, and is still a well-formed file.
CHECKSUM = "sha256"


class CheckpointError(Exception):
    """A file that is not what it should be: which one, and what is wrong with it."""


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None
) -> None:
    """Write tensors and a JSON-able mapping as one file, wholly or not at all."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = dict(values or {})
    told[CHECKSUM] = _checksum(flat, told)
    header = {VALUES: json.dumps(told, allow_nan=False)}
    replace_file(Path(path), lambda temporary: save_file(flat, temporary, metadata=header))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote; CheckpointError if it is there no longer, or not the same."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        values = json.loads(header.get(VALUES, "{}"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    checksum = values.pop(CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, values):
        raise CheckpointError(f"{path} has changed since it was written")
    return tensors, values


def _checksum(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(values, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_network(folder: str | Path, spec: NetworkSpec, module: nn.Module) -> None:
    """Write the weights and the spec that says what they are; ValueError where it does not.

    It must say all of it: a module is saved if it is the network that `build_network` makes of it.
    """
    check_network(module, spec)
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_tensors(Path(folder, WEIGHTS), module.state_dict())
    write_text(Path(folder, SPEC), spec.model_dump_json(indent=2) + "\n")


def load_spec(folder: str | Path) -> NetworkSpec:
    """Read the spec of a saved network."""
    return _read(Path(folder, SPEC), NetworkSpec.model_validate_json, "is not a network's spec")


def save_forms(folder: str | Path, forms: Mapping[str, Form]) -> None:
    """Write beside a saved network the form in which each of its structured layers runs fastest.

    ValueError for a form that there is not.
    """
    check_forms(forms)
    write_text(Path(folder, FORMS), json.dumps(dict(forms), indent=2) + "\n")


def load_forms(folder: str | Path) -> dict[str, Form]:
    """Read what `save_forms` wrote, for `models.deployment.with_forms`."""
    return _read(Path(folder, FORMS), _FORMS.validate_json, "does not say in which form layers run")


def load_network(folder: str | Path) -> nn.Module:
    """Build a saved network and fill it, in evaluation mode; every tensor must find its place."""
    spec = load_spec(folder)
    try:
        module = build_network(spec, generator=torch.Generator())
    except ValueError as error:
        raise CheckpointError(f"{Path(folder, SPEC)} is not a network: {error}") from error
    tensors, _ = load_tensors(Path(folder, WEIGHTS))
    floats = {tensor.dtype for tensor in tensors.values()}
    if len(floats) == 1:
        module.to(floats.pop())
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{Path(folder, WEIGHTS)} does not fit {SPEC}: {error}") from error
    return module.eval()


def export(
    folder: str | Path,
    spec: NetworkSpec,
    module: nn.Module,
    example: Tensor,
    *,
    deployed: nn.Module | None = None,
) -> None:
    """Save the network, and beside it the program that plain torch runs at any batch size.

    The program is of `deployed`, if given: the same network in the forms that are fastest.
    `example` is a batch of at least two inputs, for their shape: a batch of one would be taken as a
    constant. The file keeps zeros in its place, never anyone's data.
    """
    if len(example) < 2:
        raise ValueError(f"example holds {len(example)} inputs, but export needs at least 2")
    save_network(folder, spec, module)
    traced = module if deployed is None else deployed
    was_training = traced.training
    # Without gradients, so that products which add in place where nobody asks for them do so.
    with torch.no_grad():
        program = torch.export.export(
            traced.eval(),
            (torch.zeros_like(example),),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
    traced.train(was_training)
    replace_file(Path(folder, PROGRAM), lambda temporary: torch.export.save(program, temporary))


def write_text(path: Path, text: str) -> None:
    """Write a file of text, wholly or not at all."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(path: Path, validate: Callable[[str], T], words: str) -> T:
    """Read a file of JSON; `words` say of one that is not valid what is wrong with it."""
    try:
        return validate(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except ValidationError as error:
        raise CheckpointError(f"{path} {words}: {error}") from error
