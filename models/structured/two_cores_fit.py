"""The projection onto grids of sums of Kronecker products, indices as in `two_cores`.

One decomposition for each block is exact where nothing is padded and inputs are white. Otherwise
alternating least squares go on from there: a step solves for the numbers of one core in one column
g of the grid, for all its rows p at once, and lowers the output error or leaves it. Rows beyond the
matrix may become anything: they are taken as met (expectation-maximisation).
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.structures.two_cores import CoreSizes

# Sweeps go on while each takes this share of the error away, so often at most.
PROGRESS, SWEEPS = 1e-2, 40
# Steps are damped by this share of the mean curvature: C may be singular, and padding is.
DAMPING = 1e-10


@dataclass(frozen=True, slots=True)
class CoreIndices:
    """The lengths of the indices, and how the matrix is laid out in them."""

    p: int
    o: int
    q: int
    g: int
    c: int
    d: int
    left_first: bool

    @classmethod
    def of(cls, sizes: CoreSizes) -> "CoreIndices":
        """What the core that is contracted first reads and writes, then the other."""
        left, right = (sizes.delta, sizes.alpha), (sizes.epsilon, sizes.beta)
        (o, c), (q, d) = (left, right) if sizes.left_first else (right, left)
        return cls(p=sizes.phi, o=o, q=q, g=sizes.gamma, c=c, d=d, left_first=sizes.left_first)

    def fold(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "p o q g c d"]:
        """The matrix, padded with zeros, by its indices."""
        rows, columns = self._patterns()
        tall, wide = self.p * self.o * self.q, self.g * self.c * self.d
        padded = functional.pad(matrix, (0, wide - matrix.shape[1], 0, tall - matrix.shape[0]))
        lengths = {"p": self.p, "o": self.o, "g": self.g, "c": self.c}
        return rearrange(padded, f"{rows} {columns} -> p o q g c d", **lengths, q=self.q, d=self.d)

    def unfold(self, blocks: Float[Tensor, "p o q g c d"]) -> Float[Tensor, "rows columns"]:
        """The padded matrix again."""
        rows, columns = self._patterns()
        return rearrange(blocks, f"p o q g c d -> {rows} {columns}")

    def fold_moment(self, moment: Float[Tensor, "columns columns"]) -> Float[Tensor, "g c d g c d"]:
        """C by the indices; columns beyond the matrix carry nothing."""
        _, columns = self._patterns()
        missing = self.g * self.c * self.d - len(moment)
        padded = functional.pad(moment, (0, missing, 0, missing))
        lengths = {"g": self.g, "c": self.c, "d": self.d}
        half = rearrange(padded, f"{columns} other -> (g c d) other", **lengths)
        whole = rearrange(half, f"other {columns} -> other (g c d)", **lengths)
        return whole.reshape(*lengths.values(), *lengths.values())

    def _patterns(self) -> tuple[str, str]:
        return ("(p o q)", "(g c d)") if self.left_first else ("(p q o)", "(g d c)")


def as_products(blocks: Float[Tensor, "p o q g c d"]) -> Float[Tensor, "p g one two"]:
    """Every block rearranged so that a Kronecker product has rank 1 (Van Loan & Pitsianis)."""
    return rearrange(blocks, "p o q g c d -> p g (o c) (q d)")


def decompose(
    blocks: Float[Tensor, "p o q g c d"], *, rank: int
) -> tuple[Float[Tensor, "g p r o c"], Float[Tensor, "p g d r q"]]:
    """The best `rank` products of each block, of equal norms on both sides.

    By the eigenvectors of the smaller Gram matrix, several times faster than an SVD: what is lost
    lies below 1e-8 of the largest product.
    """
    products = as_products(blocks)
    is_tall = products.shape[2] > products.shape[3]
    if is_tall:
        products = products.mT
    _, basis = torch.linalg.eigh(products @ products.mT)
    first = basis[..., -rank:].flip(-1)
    second = first.mT @ products
    root = second.norm(dim=-1).sqrt().clamp(min=torch.finfo(second.dtype).tiny)
    first, second = first * root[..., None, :], second / root[..., None]
    if is_tall:
        first, second = second.mT, first.mT
    _, out, last, *_ = blocks.shape
    return (
        rearrange(first, "p g (o c) r -> g p r o c", o=out),
        rearrange(second, "p g r (q d) -> p g d r q", q=last),
    )


def refine(
    first: Float[Tensor, "g p r o c"],
    second: Float[Tensor, "p g d r q"],
    *,
    target: Float[Tensor, "p o q g c d"],
    inside: Float[Tensor, "p o q g c d"],
    moment: Float[Tensor, "g c d g c d"],
) -> tuple[Float[Tensor, "g p r o c"], Float[Tensor, "p g d r q"]]:
    """Cores with less output error, in float64; `inside` is 1 in the matrix, 0 in its padding."""
    first, second = first.clone(), second.clone()
    residual = (target - torch.einsum("gproc,pgdrq->poqgcd", first, second)) * inside
    count, wide = len(first), residual[0, 0, 0].numel()
    columns = moment.reshape(wide, count, wide // count)

    def step(g: int) -> float:
        """Solve for column g of either core; what its error was before."""
        here, within = moment[g, :, :, g], inside[:, :, :, g]
        # What one more of each number in column g would gain.
        gain = (residual.reshape(-1, wide) @ columns[:, g]).reshape(within.shape)
        error = float((gain * residual[:, :, :, g]).sum())
        gram = torch.einsum("pdrq,pfsq->pdrfs", second[:, g], second[:, g])
        gram = torch.einsum("pdrfs,cdef->prcse", gram, here)
        change = solve(gram, torch.einsum("poqcd,pdrq->prco", gain, second[:, g]))
        first[g] += change.permute(0, 1, 3, 2)
        seen = torch.einsum("prco,pdrq->poqcd", change, second[:, g]) * within
        residual[:, :, :, g] -= seen
        gain -= torch.einsum("poqcd,cdef->poqef", seen, here)
        gram = torch.einsum("proc,psoe->prcse", first[g], first[g])
        gram = torch.einsum("prcse,cdef->pdrfs", gram, here)
        change = solve(gram, torch.einsum("poqcd,proc->pdrq", gain, first[g]))
        second[:, g] += change
        residual[:, :, :, g] -= torch.einsum("proc,pdrq->poqcd", first[g], change) * within
        return error

    before = torch.inf
    for _ in range(SWEEPS):
        error = sum(step(g) for g in range(count))
        if before - error <= PROGRESS * error:
            break
        before = error
    return first, second


def solve(
    gram: Float[Tensor, "p one two one two"], gain: Float[Tensor, "p one two other"]
) -> Float[Tensor, "p one two other"]:
    """The damped least-squares steps of all rows of the grid."""
    size = gram.shape[1] * gram.shape[2]
    square = gram.reshape(-1, size, size)
    mean = square.diagonal(dim1=1, dim2=2).mean(dim=1)
    noise = DAMPING * mean + torch.finfo(square.dtype).tiny
    square = square + noise[:, None, None] * torch.eye(size).to(square)
    steps: Tensor = torch.linalg.solve(square, gain.reshape(-1, size, gain.shape[3]))
    return steps.reshape(gain.shape)
