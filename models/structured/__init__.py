"""The public layers: one file for each matrix structure."""

from models.structured.base import StructuredLinear
from models.structured.blast import BlastLinear
from models.structured.block_diagonal import BlockDiagonalLinear
from models.structured.block_low_rank import BlockLowRankLinear
from models.structured.block_sparse import BlockSparseLinear
from models.structured.btt import BttLinear
from models.structured.btt_moe import BttMoeLinear
from models.structured.butterfly import ButterflyLinear
from models.structured.butterfly_gadget import ButterflyGadgetLinear
from models.structured.circulant import CirculantLinear
from models.structured.convolution import StructuredConv2d
from models.structured.cp import CpLinear
from models.structured.dense import DenseLinear
from models.structured.diagonals import DiagonalsLinear
from models.structured.einsum import EinsumLinear
from models.structured.gblr import GblrLinear
from models.structured.group_and_shuffle import GroupAndShuffleLinear
from models.structured.kronecker import KroneckerLinear
from models.structured.low_displacement_rank import LowDisplacementRankLinear
from models.structured.low_rank import LowRankLinear
from models.structured.sparse_convolution import SparseConv2d
from models.structured.sttp import SttpLinear
from models.structured.sums import SumLinear
from models.structured.svdp import SvdpLinear
from models.structured.tensor_train import TensorTrainLinear
from models.structured.toeplitz_like import ToeplitzLikeLinear
from models.structured.truncated_butterfly import TruncatedButterfly

__all__ = [
    "BlastLinear",
    "BlockDiagonalLinear",
    "BlockLowRankLinear",
    "BlockSparseLinear",
    "BttLinear",
    "BttMoeLinear",
    "ButterflyGadgetLinear",
    "ButterflyLinear",
    "CirculantLinear",
    "CpLinear",
    "DenseLinear",
    "DiagonalsLinear",
    "EinsumLinear",
    "GblrLinear",
    "GroupAndShuffleLinear",
    "KroneckerLinear",
    "LowDisplacementRankLinear",
    "LowRankLinear",
    "SparseConv2d",
    "StructuredConv2d",
    "StructuredLinear",
    "SttpLinear",
    "SumLinear",
    "SvdpLinear",
    "TensorTrainLinear",
    "ToeplitzLikeLinear",
    "TruncatedButterfly",
]
