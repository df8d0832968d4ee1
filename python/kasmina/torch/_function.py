"""A pass as an autograd function: y from x, the host's output and the parameters of the seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Tuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from .._heap import Block
from .._lane import Completion
from .._layer import Entry, Ticket, dims, failures_of
from .._layout import (
    ALIGNMENT,
    BACKWARD,
    DTYPE_CODES,
    FORWARD,
    TAKE_TICKET,
    TRAIN,
    WANT_GRAD_ALPHAS,
    WANT_GRAD_INPUT,
    WANT_GRAD_PARAMETERS,
)
from ..errors import ConnectionLost

if TYPE_CHECKING:
    from .._connection import Connection
    from ._layer import SeededLayer

_I64_MAX = (1 << 63) - 1
_NUMPY = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,  # NumPy has no such type; the bits are looked at again as PyTorch's
}
_VIEWS_KEPT = 512


def run(layer: SeededLayer, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """``h`` blended with the layer's live seeds, recorded for autograd where anything wants a gradient."""
    if not x.numel() or not h.numel():
        return h
    tensors: List[torch.Tensor] = []
    for seed in layer._grafted:
        tensors += seed._tensors
    if torch.is_grad_enabled() and (
        x.requires_grad or h.requires_grad or any(tensor.requires_grad for tensor in tensors)
    ):
        return _Blend.apply(layer, x, h, *tensors)
    y, *_ = _forward(layer, x, h, 0)
    return y


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: SeededLayer, x: torch.Tensor, h: torch.Tensor, *tensors: torch.Tensor) -> Any:
        _, want_x, _, *want_tensors = ctx.needs_input_grad
        want = WANT_GRAD_INPUT if want_x else 0
        if any(want_tensors):
            want |= WANT_GRAD_PARAMETERS
        if layer.alpha_gradients:
            want |= WANT_GRAD_ALPHAS
        y, completion, ticket, factor = _forward(layer, x, h, want)
        ctx.layer, ctx.ticket, ctx.want, ctx.x_shape = layer, ticket, want, tuple(x.shape)
        ctx.blend_weight = completion.blend_weight
        ctx.live_mask, ctx.alpha_total = completion.live_mask, completion.alpha_total
        ctx.ran = [(seed, seed._grafted, len(seed._tensors)) for seed in layer._grafted]
        # Saved so that a change between forward and backward raises as it does in PyTorch: the daemon
        # reads the parameters, and x where it was not copied, where they lie.
        needs_h = layer.blend == "multiply" or (layer.alpha_gradients and layer.blend == "convex")
        x_lies_there = ticket is not None and ticket.held is x
        ctx.kept = [x if x_lies_there else None, h if needs_h else None, factor]
        saved = [tensor for tensor in ctx.kept if tensor is not None]
        ctx.kept = [tensor is not None for tensor in ctx.kept]
        ctx.save_for_backward(*saved, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        saved = list(ctx.saved_tensors)
        _, h, factor = (saved.pop(0) if kept else None for kept in ctx.kept)
        layer: SeededLayer = ctx.layer
        grads: List[Optional[torch.Tensor]] = [None] * (len(saved) + 3)
        if ctx.needs_input_grad[2]:
            if layer.blend == "convex":
                grads[2] = grad * (1.0 - ctx.blend_weight)
            else:
                grads[2] = grad if layer.blend == "residual" else grad * factor
        if ctx.ticket is not None:
            try:
                _backward(ctx, grad if h is None or layer.blend == "convex" else grad * h, h, grads)
            except ConnectionLost:
                layer._go_on_alone()
                raise
        return tuple(grads)


def _forward(
    layer: SeededLayer, x: torch.Tensor, h: torch.Tensor, want: int
) -> Tuple[torch.Tensor, Completion, Optional[Ticket], Optional[torch.Tensor]]:
    """y, what the daemon said, the ticket, and P of a multiplying blend."""
    # Looked at once: after the daemon's return a layer is another, on another connection.
    remote = layer.remote
    client = remote.client
    flags = TRAIN if layer.training else 0
    if want:
        flags |= want | TAKE_TICKET
    offset, held = _in_arena(client, x.detach())
    out_bytes = h.numel() * h.element_size()
    target = client._allocate(out_bytes)
    completion = client._lane.run(
        FORWARD,
        flags,
        remote.number,
        DTYPE_CODES[remote.dtype],
        0,
        int(layer._random.random_(0, _I64_MAX)) if layer.training else 0,
        (offset, x.numel() * x.element_size(), target.offset, out_bytes, 0, 0, 0, 0, 0, 0, 0, 0),
        dims(tuple(x.shape), tuple(h.shape)),
    )
    ticket = None
    if completion.ticket:
        # Where x lies in the arena it is the tensor itself that must live on.
        ticket = Ticket(remote, completion.ticket, x if held is None else held)
    if completion.failed_mask or layer.last_failures:
        layer._note_failures(failures_of(completion))
    out = _owning_tensor(client, target, h.dtype, h.numel()).view(h.shape)
    if layer.blend == "multiply":
        factor = out.clone() if client._heap.crowded else out
        return h * factor, completion, ticket, factor
    if layer.blend == "convex":
        if completion.blend_weight < 1.0:
            out.add_(h, alpha=1.0 - completion.blend_weight)
    else:
        out.add_(h)
    return (out.clone() if client._heap.crowded else out), completion, ticket, None


def _backward(
    ctx: Any, grad: torch.Tensor, h: Optional[torch.Tensor], grads: List[Optional[torch.Tensor]]
) -> None:
    """Runs the daemon's backward and puts what it yields where autograd expects it."""
    layer: SeededLayer = ctx.layer
    # A ticket of before the daemon's return is of a connection that is gone, and says so.
    remote, want = ctx.ticket.layer, ctx.want
    client = remote.client
    grad_bytes = grad.numel() * grad.element_size()
    offset, held = _in_arena(client, grad)
    ran = [ran for ran in ctx.ran if ctx.live_mask >> ran[0].index & 1]
    x_elements = 1
    for size in ctx.x_shape:
        x_elements *= size
    x_bytes = x_elements * grad.element_size()
    parameter_bytes = sum(grafted.gradient_bytes for _, grafted, _ in ran)
    seeds = remote.seeds
    places = [0, 0, 0, 0, offset, grad_bytes, 0, 0, 0, 0, 0, 0]
    to_x = to_parameters = to_alphas = None
    if want & WANT_GRAD_INPUT:
        to_x = client._allocate(x_bytes)
        places[6:8] = to_x.offset, x_bytes
    if want & WANT_GRAD_PARAMETERS:
        to_parameters = client._allocate(parameter_bytes)
        places[8:10] = to_parameters.offset, parameter_bytes
    if want & WANT_GRAD_ALPHAS:
        to_alphas = client._allocate(seeds * 4)
        places[10:12] = to_alphas.offset, seeds * 4
    number = ctx.ticket.spend()
    completion = client._lane.run(BACKWARD, want, remote.number, 0, number, 0, tuple(places))
    ctx.ticket.held = held = None  # x and the gradient may go now
    if completion.failed_mask:
        layer._note_failures(failures_of(completion))
    crowded = client._heap.crowded
    if to_x is not None:
        grad_x = _owning_tensor(client, to_x, grad.dtype, x_elements).view(ctx.x_shape)
        grads[1] = grad_x.clone() if crowded else grad_x
    if to_parameters is not None and parameter_bytes:
        block = _owning_tensor(client, to_parameters, torch.float32, parameter_bytes // 4)
        _share_out(ctx, block.clone() if crowded else block, grads)
    if to_alphas is not None:
        alphas = client._array(to_alphas, np.float32, (seeds,)).tolist()
        # Of a convex blend whose weights are not clamped, raising alpha also takes from h.
        taken = 0.0
        if layer.blend == "convex" and ctx.alpha_total <= 1.0 and h is not None:
            taken = float(torch.dot(h.reshape(-1), grad.reshape(-1)))
        for seed, _, _ in ran:
            seed.alpha_grad = alphas[seed.index] - taken


def _share_out(ctx: Any, block: torch.Tensor, grads: List[Optional[torch.Tensor]]) -> None:
    """Views of the block of all parameters' gradients: seeds that ran, in order, each as its own block."""
    at, start = 3, 0
    for seed, grafted, count in ctx.ran:
        if ctx.live_mask >> seed.index & 1:
            for place, entry in enumerate(grafted.parameters, at):
                if ctx.needs_input_grad[place]:
                    grads[place] = _part(block, start + entry.offset, entry)
            start += grafted.gradient_bytes
        at += count


def _part(block: torch.Tensor, offset: int, entry: Entry) -> torch.Tensor:
    if entry.dtype == "float32":
        return block[offset // 4 : offset // 4 + entry.elements].view(entry.shape)
    raw = block.view(torch.uint8)[offset : offset + entry.nbytes]
    return raw.view(getattr(torch, entry.dtype)).view(entry.shape)


def _in_arena(client: Connection, tensor: torch.Tensor) -> Tuple[int, Optional[Block]]:
    """Where a tensor lies in the arena, and the block it was copied to; none where it lay there already."""
    offset = tensor.data_ptr() - client._base
    if 0 <= offset < len(client._memory) and not offset % ALIGNMENT and tensor.is_contiguous():
        return offset, None
    block = client._allocate(tensor.numel() * tensor.element_size())
    _view(client, block, tensor).copy_(tensor)
    return block.offset, block


def _view(client: Connection, block: Block, like: torch.Tensor) -> torch.Tensor:
    """A tensor over a block that does not hold it, for use on the spot. Training asks for the same again and
    again, so they are kept."""
    key = (block.offset, like.shape, like.dtype)
    view = client._views.get(key)
    if view is None:
        if len(client._views) >= _VIEWS_KEPT:
            client._views.clear()
        array = client._array(block, _NUMPY[like.dtype], tuple(like.shape))
        with torch.inference_mode(False):
            view = client._views[key] = torch.from_numpy(array).view(like.dtype)
    return view


def _owning_tensor(client: Connection, block: Block, dtype: torch.dtype, elements: int) -> torch.Tensor:
    """A flat tensor over a block, which is given back when nothing looks at it any more."""
    return torch.from_numpy(client._owning_array(block, _NUMPY[dtype], elements)).view(dtype)
