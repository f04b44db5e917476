"""A mixture of experts that are the rank slices of a block tensor-train."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.structured.btt import BttLinear
from models.structured.btt_moe import BttMoeLinear
from models.structured.routing import AUXILIARY_WEIGHT, Z_WEIGHT, auxiliary_loss, lay_out
from models.structures import Btt
from models.structures.btt_moe import BttMoe
from tests.compiling import assert_compiled_alike

FOUR = BttMoe(input_blocks=2, output_blocks=3, experts=4, active=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn(spec: BttMoe, *, rows: int, columns: int, seed: int = 0) -> BttMoeLinear:
    layer = BttMoeLinear(spec, rows=rows, columns=columns, dtype=torch.float64)
    layer.reset_parameters(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.router.copy_(normal(*layer.router.shape, seed=seed + 1))
        assert layer.bias is not None
        layer.bias.copy_(normal(rows, seed=seed + 2))
    return layer


def every_expert(layer: BttMoeLinear, x: Tensor) -> Tensor:
    """By the matrices of all experts, those not chosen multiplied by zero."""
    kept, chosen = (x @ layer.router.T).topk(layer.spec.active, dim=-1)
    gates = torch.zeros(*x.shape[:-1], layer.spec.experts, dtype=x.dtype)
    gates = gates.scatter(-1, chosen, kept.softmax(-1))
    products = torch.einsum("erc,...c->...er", layer.expert_matrices(), x)
    y = (gates[..., None] * products).sum(-2)
    return y if layer.bias is None else y + layer.bias


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[BttMoe, int, int]:
    """One that fits, and its rows and columns, primes and paddings among them."""
    experts, rank = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    output_blocks, input_blocks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    least = experts * rank
    height, width = draw(st.integers(least, least + 2)), draw(st.integers(least, least + 2))
    spec = BttMoe(
        input_blocks=input_blocks,
        output_blocks=output_blocks,
        rank=rank,
        experts=experts,
        active=draw(st.integers(1, experts)),
    )
    rows = (height - 1) * output_blocks + draw(st.integers(1, output_blocks))
    columns = (width - 1) * input_blocks + draw(st.integers(1, input_blocks))
    return spec, max(rows, output_blocks), max(columns, input_blocks)


@settings(deadline=None)
@given(mixtures(), st.integers(1, 30))
def test_forward_sums_up_the_chosen_experts(case: tuple[BttMoe, int, int], inputs: int) -> None:
    spec, rows, columns = case
    layer = drawn(spec, rows=rows, columns=columns)
    x = normal(inputs, 2, columns, seed=3)
    torch.testing.assert_close(layer(x), every_expert(layer, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0], rtol=1e-9, atol=1e-9)
    assert layer(x[:0]).shape == (0, 2, rows)
    stored = sum(value.numel() for value in layer.state_dict().values())
    assert stored == spec.parameter_count(rows=rows, columns=columns) + rows
    assert BttMoe.model_validate_json(spec.model_dump_json()) == spec


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.data())
def test_every_choice_has_a_place_in_a_tile_of_its_expert(
    experts: int, length: int, data: st.DataObject
) -> None:
    inputs, active = data.draw(st.integers(1, 20)), data.draw(st.integers(1, experts))
    chosen = normal(inputs, experts, seed=length).topk(active).indices
    layout = lay_out(chosen, experts=experts, length=length)
    choices = torch.arange(inputs * active)
    assert torch.equal(layout.source.flatten()[layout.slot], choices)
    assert torch.equal(layout.expert[layout.slot // length], chosen.flatten())
    assert len(layout.slot.unique()) == len(choices)


def test_a_few_inputs_cost_exactly_the_active_share_and_many_hardly_more() -> None:
    spec = BttMoe(input_blocks=8, output_blocks=8, experts=8, active=2)
    layer = BttMoeLinear(spec, rows=128, columns=128)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(layer.router, generator=torch.Generator().manual_seed(1))
    counted = spec.mac_count(rows=128, columns=128)
    all_experts = 8 * spec.expert_size(rows=128, columns=128)
    assert counted == all_experts // 4 + 8 * 128
    for inputs, allowed in ((1, 1.0), (5, 1.0), (100, 1.5), (4096, 1.1)):
        x = torch.randn(inputs, 128, generator=torch.Generator().manual_seed(2))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        assert 1 <= counter.get_total_flops() / (2 * inputs * counted) <= allowed


def test_gradients_are_exact() -> None:
    layer = drawn(FOUR, rows=13, columns=9)
    names, values = zip(*layer.named_parameters(), strict=True)

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(
            layer, dict(zip(names, parameters, strict=True)), (x,)
        )
        return found

    assert torch.autograd.gradcheck(forward, (normal(3, 9).requires_grad_(), *values))


def test_a_dense_matrix_becomes_the_first_slices_of_its_btt() -> None:
    weight, bias = normal(12, 8), normal(12, seed=1)
    layer = BttMoeLinear.from_dense(weight, FOUR, bias=bias)
    whole = BttLinear.from_dense(weight, Btt(input_blocks=2, output_blocks=3, rank=4))
    total = layer.expert_matrices().sum(0) / FOUR.active
    torch.testing.assert_close(total, whole.to_dense())
    everyone = FOUR.model_copy(update={"active": 4})
    same = BttMoeLinear.from_dense(weight, everyone, bias=bias)
    x = normal(5, 8, seed=2)
    torch.testing.assert_close(same(x), x @ whole.to_dense().T + bias)


def test_training_the_router_alone_lowers_the_loss_of_a_projected_matrix() -> None:
    weight, x = normal(16, 16), normal(256, 16, seed=1)
    spec = BttMoe(input_blocks=2, output_blocks=2, experts=8, active=2)
    layer = BttMoeLinear.from_dense(weight, spec)
    losses = descend(layer, x, x @ weight.T, steps=150, only_router=True)
    assert losses[-1] < 0.95 * losses[0]


def test_a_planted_router_is_learned_from_zeros() -> None:
    teacher = drawn(FOUR, rows=13, columns=9)
    student = drawn(FOUR, rows=13, columns=9)
    torch.nn.init.zeros_(student.router)
    x = normal(256, 9, seed=7)
    losses = descend(student, x, teacher(x).detach(), steps=150, only_router=True)
    assert losses[-1] < 0.3 * losses[0]


def test_training_router_and_experts_serves_two_kinds_of_inputs_with_two_matrices() -> None:
    kind = torch.arange(256) % 2
    x = normal(256, 8, seed=1)
    x[:, 0] = 3.0 * (2 * kind - 1)
    maps = normal(2, 8, 8, seed=2)
    y = torch.einsum("nrc,nc->nr", maps[kind], x)
    spec = BttMoe(input_blocks=1, output_blocks=1, experts=4, active=2, rank=2)
    layer = drawn(spec, rows=8, columns=8)
    losses = descend(layer, x, y, steps=400)
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(256, 1).double()], 1), y).solution
    linear = (torch.cat([x, torch.ones(256, 1).double()], 1) @ best - y).square().mean()
    assert losses[-1] < 0.7 * float(linear)
    used = layer.logits(x).topk(2).indices.flatten().bincount(minlength=4)
    assert used.gt(0).all()


def descend(
    layer: BttMoeLinear, x: Tensor, y: Tensor, *, steps: int, only_router: bool = False
) -> list[float]:
    parameters = [layer.router] if only_router else list(layer.parameters())
    optimiser = torch.optim.Adam(parameters, lr=0.03)
    losses = []
    for _ in range(steps):
        loss = (layer(x) - y).square().mean()
        optimiser.zero_grad()
        (loss + layer.auxiliary_loss(x)).backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def test_the_auxiliary_loss_is_least_where_all_experts_are_used_alike() -> None:
    balanced = 5 * torch.eye(4).repeat(3, 1)
    one_sided = balanced[:1].repeat(12, 1)
    assert auxiliary_loss(balanced, 1) < auxiliary_loss(one_sided, 1)
    # Equal logits: a balance of 1, and (log 4)^2 for the size of the logits.
    expected = AUXILIARY_WEIGHT * (1 + Z_WEIGHT * torch.tensor(4.0).log().square())
    torch.testing.assert_close(auxiliary_loss(torch.zeros(6, 4), 2), expected)


def test_a_router_of_zeros_that_minds_the_auxiliary_loss_comes_to_use_all_experts() -> None:
    layer = BttMoeLinear(FOUR, rows=13, columns=9, dtype=torch.float64)
    x = normal(64, 9)
    optimiser = torch.optim.Adam([layer.router], lr=0.05)
    before = float(layer.auxiliary_loss(x).detach())
    for _ in range(30):
        optimiser.zero_grad()
        layer.auxiliary_loss(x).backward()
        optimiser.step()
    assert float(layer.auxiliary_loss(x).detach()) < before * (1 + 1e-3)
    used = layer.logits(x).topk(2).indices.flatten().bincount(minlength=4)
    assert used.min() > 0


@pytest.mark.parametrize("width", [256, 1024])
def test_initialisation_keeps_the_variance_forwards_and_backwards(width: int) -> None:
    spec = BttMoe(input_blocks=16, output_blocks=16, experts=8, active=2)
    layer = BttMoeLinear(spec, rows=width, columns=width)
    generator = torch.Generator().manual_seed(0)
    layer.reset_parameters(generator)
    x = torch.randn(512, width, generator=generator).requires_grad_()
    y = layer(x)
    gradient = torch.randn(512, width, generator=generator)
    (backward,) = torch.autograd.grad(y, x, gradient)
    assert 0.8 <= y.square().mean() <= 1.2
    assert 0.8 <= backward.square().mean() <= 1.2


def test_half_precision_stays_half_precision() -> None:
    layer, x = drawn(FOUR, rows=13, columns=9), normal(7, 9)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x.float()).dtype == torch.bfloat16


def test_no_inputs_add_nothing_to_the_loss() -> None:
    layer = drawn(FOUR, rows=13, columns=9)
    loss = layer.auxiliary_loss(normal(0, 9))
    loss.backward()
    assert loss == 0
    assert layer.router.grad is not None
    assert (layer.router.grad == 0).all()


@pytest.mark.usefixtures("unchecked")
def test_the_layer_is_exported_and_compiled_with_its_routing() -> None:
    layer = drawn(FOUR, rows=13, columns=9)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(layer, (normal(3, 2, 9),), dynamic_shapes=dynamic)
    x = normal(70, 2, 9, seed=5)
    torch.testing.assert_close(program.module()(x), layer(x))
    assert_compiled_alike(layer, x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"active": 9}, "active is 9, but a mixture of 8 experts admits 1 to 8"),
        ({"input_blocks": 17}, "input_blocks is 17, but a 16 x 16 matrix admits 1 to 16"),
        ({"rank": 2}, "experts 8 times rank 2 is 16, but a 8 x 8 block admits 1 to 8"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_range(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BttMoeLinear(
            BttMoe.model_validate({"input_blocks": 2, "output_blocks": 2, **fields}),
            rows=16,
            columns=16,
        )
