"""Tensors over device memory that the daemon shares, and the stream that a thread works on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Tuple

import torch

if TYPE_CHECKING:
    from .._connection import Connection

#: How CUDA's array interface names the element types; it has no bfloat16, whose bits are looked at again as PyTorch's.
_TYPES = {torch.float32: "<f4", torch.float64: "<f8", torch.float16: "<f2", torch.bfloat16: "<i2", torch.int64: "<i8",
          torch.int32: "<i4", torch.int16: "<i2", torch.int8: "|i1", torch.uint8: "|u1", torch.bool: "|b1"}


class _Span:
    """Device memory as PyTorch takes it; it holds what the memory belongs to."""

    def __init__(self, address: int, dtype: torch.dtype, count: int, held: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": _TYPES[dtype], "data": (address, False), "version": 3
        }
        self.held = held


def device_of(client: Connection) -> torch.device:
    """Where the tensors of a session lie."""
    return torch.device("cpu") if client.gpu is None else torch.device("cuda", client.gpu.number)


def current_stream(number: int) -> int:
    """The stream that this thread hands its work to on a device."""
    return torch.cuda.current_stream(number).cuda_stream


def over(device: torch.device, address: int, dtype: torch.dtype, shape: Tuple[int, ...], held: Any) -> torch.Tensor:
    """A tensor over device memory, which holds ``held`` as long as anything looks at it. It has at least one element."""
    with torch.inference_mode(False):
        flat = torch.as_tensor(_Span(address, dtype, math.prod(shape), held), device=device)
        # No view of another: what an autograd function returns may then be written to in place.
        return torch.empty(0, dtype=dtype, device=device).set_(flat.untyped_storage(), 0, shape)
