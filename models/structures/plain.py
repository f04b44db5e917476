"""The union of all structures that are not made of others."""

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
from models.structures.gblr import Gblr
from models.structures.group_and_shuffle import GroupAndShuffle
from models.structures.kronecker import Kronecker
from models.structures.low_displacement_rank import LowDisplacementRank
from models.structures.low_rank import LowRank
from models.structures.sttp import Sttp
from models.structures.svdp import Svdp
from models.structures.tensor_train import TensorTrain
from models.structures.toeplitz_like import ToeplitzLike

PlainStructure = (
    Dense
    | LowRank
    | BlockDiagonal
    | BlockSparse
    | BlockLowRank
    | Btt
    | Blast
    | Gblr
    | Diagonals
    | Butterfly
    | GroupAndShuffle
    | Svdp
    | Sttp
    | ButterflyGadget
    | Einsum
    | Kronecker
    | Circulant
    | ToeplitzLike
    | LowDisplacementRank
    | TensorTrain
    | Cp
)
