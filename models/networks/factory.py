"""What a network asks for its linear layers: a module for each row of its layer table."""

from collections.abc import Callable

from torch import nn

from models.spec import LayerSpec

Linear = Callable[[LayerSpec], nn.Module]
