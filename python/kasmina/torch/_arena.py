"""Tensors in the memory that a session shares with the daemon: the host's, or a GPU's."""

from __future__ import annotations

import math
from ctypes import memmove
from operator import index
from typing import TYPE_CHECKING, Any, Optional, Tuple

import numpy as np
import torch

from .. import _openmp
from .._heap import Block
from .._layout import ALIGNMENT
from ..errors import UsageError
from . import _gpu

if TYPE_CHECKING:
    from .._connection import Connection

_NUMPY = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.int16),  # NumPy has no such type; the bits are looked at again as PyTorch's
}
_VIEWS_KEPT = 512
#: Bytes from which on a copy by all of PyTorch's threads gains more than waking them costs.
_BY_THREADS = 2 << 20


def empty(client: Connection, size: Tuple[Any, ...], dtype: Optional[torch.dtype], requires_grad: bool) -> torch.Tensor:
    """A tensor in the arena, of sizes as ``torch.empty`` takes them."""
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in _NUMPY:
        raise UsageError(f"a layer takes {', '.join(str(each) for each in _NUMPY)}, and {dtype} was asked for")
    shape = tuple(index(each) for each in (size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size))
    if any(each < 0 for each in shape):
        raise UsageError(f"a size is 0 or more, and {list(shape)} was asked for")
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype, device=_gpu.device_of(client), requires_grad=requires_grad)
    block = client._allocate(math.prod(shape) * dtype.itemsize)
    with torch.inference_mode(False):
        return owning_tensor(client, block, dtype, shape).requires_grad_(requires_grad)


def in_arena(client: Connection, tensor: torch.Tensor, count: int) -> Tuple[int, Optional[Block]]:
    """Where a tensor of ``count`` bytes lies in the arena, and the block it was copied to; none where it lay there
    already."""
    offset = tensor.data_ptr() - client._base
    if 0 <= offset < client._extent and not offset % ALIGNMENT and tensor.is_contiguous():
        return offset, None
    return copied(client, tensor, count)


def copied(client: Connection, tensor: torch.Tensor, count: int) -> Tuple[int, Block]:
    """The same of a copy that nobody else can write to."""
    block = client._allocate(count)
    is_by_threads = count >= _BY_THREADS and _openmp.sleep_soon
    if not is_by_threads and client.gpu is None and tensor.is_contiguous() and tensor.is_cpu and not tensor.is_neg():
        # PyTorch would wake a thread for it, on a processor that the daemon is about to need.
        memmove(client._base + block.offset, tensor.data_ptr(), count)
        return block.offset, block
    if client.gpu is not None:
        # Another stream may have had the block before.
        client._lane.signals.follow()
    _view(client, block, tensor).copy_(tensor.detach())
    return block.offset, block


def _view(client: Connection, block: Block, like: torch.Tensor) -> torch.Tensor:
    """A tensor over a block that does not hold it, for use on the spot. Training asks for the same again and
    again, so they are kept."""
    key = (block.offset, like.shape, like.dtype)
    view = client._views.get(key)
    if view is None:
        if len(client._views) >= _VIEWS_KEPT:
            client._views.clear()
        if client.gpu is not None:
            address, device = client._base + block.offset, _gpu.device_of(client)
            view = client._views[key] = _gpu.over(device, address, like.dtype, tuple(like.shape), client._device_memory)
            return view
        array = client._array(block, _NUMPY[like.dtype], tuple(like.shape))
        with torch.inference_mode(False):
            view = client._views[key] = torch.from_numpy(array).view(like.dtype)
    return view


def owning_tensor(client: Connection, block: Block, dtype: torch.dtype, shape: Tuple[int, ...]) -> torch.Tensor:
    """A tensor over a block, which is given back when nothing looks at it any more."""
    if client.gpu is not None:
        held = block, client._device_memory
        return _gpu.over(_gpu.device_of(client), client._base + block.offset, dtype, shape, held)
    # No view of another tensor: what an autograd function returns may then be written to in place.
    tensor = torch.from_numpy(client._owning_array(block, _NUMPY[dtype], shape))
    if tensor.dtype is dtype:
        return tensor
    return torch.empty(0, dtype=dtype, device="cpu").set_(tensor.untyped_storage(), 0, shape)
