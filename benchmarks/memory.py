"""The most memory that a product's intermediate results hold at once."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    """Counts the bytes of the storages that operators have made and nobody has dropped yet."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.now = 0
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() in given | self.known:
                continue
            self.known.add(storage.data_ptr())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, storage.data_ptr(), storage.nbytes())
        return result

    def _drop(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.now -= size


def _tensors(tree: object) -> list[torch.Tensor]:
    return [
        leaf
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
    ]


def working_bytes(call: Callable[[], object]) -> int:
    """Bytes of results and intermediates at their most, the call's inputs and weights not counted.

    What a kernel allocates for itself alone is not seen.
    """
    watch = _Watch()
    with watch:
        kept = call()
    del kept
    return watch.most
