"""From a structure that is not made of others to the class of its layer."""

from typing import Never

from models.structured.base import StructuredLinear
from models.structured.blast import BlastLinear
from models.structured.block_diagonal import BlockDiagonalLinear
from models.structured.block_low_rank import BlockLowRankLinear
from models.structured.block_sparse import BlockSparseLinear
from models.structured.btt import BttLinear
from models.structured.butterfly import ButterflyLinear
from models.structured.butterfly_gadget import ButterflyGadgetLinear
from models.structured.circulant import CirculantLinear
from models.structured.cp import CpLinear
from models.structured.dense import DenseLinear
from models.structured.diagonals import DiagonalsLinear
from models.structured.einsum import EinsumLinear
from models.structured.gblr import GblrLinear
from models.structured.group_and_shuffle import GroupAndShuffleLinear
from models.structured.kronecker import KroneckerLinear
from models.structured.low_displacement_rank import LowDisplacementRankLinear
from models.structured.low_rank import LowRankLinear
from models.structured.sttp import SttpLinear
from models.structured.svdp import SvdpLinear
from models.structured.tensor_train import TensorTrainLinear
from models.structured.toeplitz_like import ToeplitzLikeLinear
from models.structures import (
    Blast,
    BlockDiagonal,
    BlockLowRank,
    BlockSparse,
    Btt,
    Butterfly,
    ButterflyGadget,
    Circulant,
    Cp,
    Dense,
    Diagonals,
    Einsum,
    Gblr,
    GroupAndShuffle,
    Kronecker,
    LowDisplacementRank,
    LowRank,
    Sttp,
    Svdp,
    TensorTrain,
    ToeplitzLike,
)
from models.structures.plain import PlainStructure


def plain_class(  # noqa: PLR0911, PLR0912 - one for each structure
    structure: PlainStructure,
) -> type[StructuredLinear]:
    """The class whose layers have this structure."""
    match structure:
        case Dense():
            return DenseLinear
        case LowRank():
            return LowRankLinear
        case BlockDiagonal():
            return BlockDiagonalLinear
        case Blast():
            return BlastLinear
        case Diagonals():
            return DiagonalsLinear
        case Gblr():
            return GblrLinear
        case Butterfly():
            return ButterflyLinear
        case GroupAndShuffle():
            return GroupAndShuffleLinear
        case Svdp():
            return SvdpLinear
        case Sttp():
            return SttpLinear
        case BlockSparse():
            return BlockSparseLinear
        case BlockLowRank():
            return BlockLowRankLinear
        case Btt():
            return BttLinear
        case ButterflyGadget():
            return ButterflyGadgetLinear
        case Einsum():
            return EinsumLinear
        case Kronecker():
            return KroneckerLinear
        case Circulant():
            return CirculantLinear
        case ToeplitzLike():
            return ToeplitzLikeLinear
        case LowDisplacementRank():
            return LowDisplacementRankLinear
        case TensorTrain():
            return TensorTrainLinear
        case Cp():
            return CpLinear
        case _:
            raise _refusal(structure)


def _refusal(structure: Never) -> TypeError:
    """Name what is none of the structures; the type checker sees that each has its case above."""
    kind = type(structure).__name__
    return TypeError(f"structure is a {kind}, but a layer admits those of models.structures")
