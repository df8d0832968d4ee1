"""A pass as an autograd function: y from x, the host's output and the parameters of the seeds.

This is how a layer runs outside ``torch.compile``. The custom operators of ``_ops`` cost some ten times its
overhead for each call, so they are used only where a compiler needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional

import torch
from torch.autograd.function import once_differentiable

from ..errors import ConnectionLost
from ._pass import Pass, share_out, wanted

if TYPE_CHECKING:
    from ._layer import SeededLayer


def run(layer: SeededLayer, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """``h`` blended with the layer's live seeds, recorded for autograd where anything wants a gradient."""
    if not x.numel() or not h.numel():
        return h
    tensors = tensors_of(layer)
    if recorded(x, h, tensors):
        return Blend.apply(layer, None, x, h, *tensors)
    return Pass(layer, x, h, 0).settle(h)


def tensors_of(layer: SeededLayer) -> List[torch.Tensor]:
    """The parameters of what is grafted."""
    tensors: List[torch.Tensor] = []
    for seed in layer._grafted:
        tensors += seed._tensors
    return tensors


def recorded(x: torch.Tensor, h: torch.Tensor, tensors: List[torch.Tensor]) -> bool:
    """Whether autograd will want anything of a pass."""
    return torch.is_grad_enabled() and (
        x.requires_grad or h.requires_grad or any(tensor.requires_grad for tensor in tensors)
    )


class Blend(torch.autograd.Function):
    """``started`` is the pass if it is under way already."""

    @staticmethod
    def forward(
        ctx: Any, layer: SeededLayer, started: Optional[Pass], x: torch.Tensor, h: torch.Tensor, *tensors: Any
    ) -> Any:
        if started is None:
            _, _, want_x, _, *want_tensors = ctx.needs_input_grad
            started = Pass(layer, x, h, wanted(layer, want_x, any(want_tensors)))
        y = started.settle(h)
        ctx.started = started
        # Saved so that a change between forward and backward raises as it does in PyTorch: the daemon
        # reads the parameters, and x where it was not copied, where they lie.
        kept = [x if started.x_lies_there else None, h if started.needs_h else None]
        ctx.kept = [tensor is not None for tensor in kept]
        ctx.save_for_backward(*[tensor for tensor in kept if tensor is not None], *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        started: Pass = ctx.started
        saved = list(ctx.saved_tensors)
        _, h = (saved.pop(0) if kept else None for kept in ctx.kept)
        grads: List[Optional[torch.Tensor]] = [None] * (len(saved) + 4)
        if ctx.needs_input_grad[3]:
            grads[3] = started.grad_h(grad)
        if started.ticket is not None:
            try:
                gradients = started.backward(grad, h)
            except ConnectionLost:
                started.layer._go_on_alone()
                raise
            if ctx.needs_input_grad[2]:
                grads[2] = gradients.input
            if gradients.parameters is not None:
                for place, gradient in share_out(started, gradients.parameters):
                    if ctx.needs_input_grad[place + 4]:
                        grads[place + 4] = gradient
        return tuple(grads)
