"""What a structure is and costs: one file of frozen data for each, no tensor, no torch."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from models.structures.blast import Blast
from models.structures.block_diagonal import BlockDiagonal
from models.structures.block_low_rank import BlockLowRank
from models.structures.block_sparse import BlockSparse
from models.structures.btt import Btt
from models.structures.butterfly import Butterfly
from models.structures.butterfly_gadget import ButterflyGadget
from models.structures.circulant import Circulant
from models.structures.cp import Cp
from models.structures.dense import Dense
from models.structures.diagonals import Diagonals
from models.structures.einsum import Einsum
from models.structures.gblr import Gblr, Rectangle
from models.structures.group_and_shuffle import GroupAndShuffle
from models.structures.kronecker import Kronecker
from models.structures.low_displacement_rank import LowDisplacementRank
from models.structures.low_rank import LowRank
from models.structures.plain import PlainStructure
from models.structures.sttp import Sttp
from models.structures.sums import Sum
from models.structures.svdp import Svdp
from models.structures.tensor_train import TensorTrain
from models.structures.toeplitz_like import ToeplitzLike

Structure = Annotated[PlainStructure | Sum, Field(discriminator="kind")]
STRUCTURE_ADAPTER: TypeAdapter[Structure] = TypeAdapter(Structure)

__all__ = [
    "STRUCTURE_ADAPTER",
    "Blast",
    "BlockDiagonal",
    "BlockLowRank",
    "BlockSparse",
    "Btt",
    "Butterfly",
    "ButterflyGadget",
    "Circulant",
    "Cp",
    "Dense",
    "Diagonals",
    "Einsum",
    "Gblr",
    "GroupAndShuffle",
    "Kronecker",
    "LowDisplacementRank",
    "LowRank",
    "Rectangle",
    "Structure",
    "Sttp",
    "Sum",
    "Svdp",
    "TensorTrain",
    "ToeplitzLike",
]
