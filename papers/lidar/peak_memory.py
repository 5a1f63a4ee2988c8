"""The peak of the memory that tensors hold on the CPU; on a GPU, PyTorch's own statistics tell it."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Within its block, follows the storages of all tensors that operations return, what autograd keeps included.

    Attributes:
        peak: of the bytes that lived at the same time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        for given in tree_leaves((arguments, keywords)):
            if isinstance(given, Tensor):
                self._follow(given.untyped_storage(), counted=False)  # from before the block, unless it is known
        found = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return found

    def _follow(self, storage: torch.UntypedStorage, *, counted: bool = True) -> None:
        key, size = storage._cdata, storage.nbytes() if counted else 0
        if key in self._known:
            return
        self._known.add(key)
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._held -= size
