"""A pass as an autograd function: y from x, the host's output, learnt blend factors and parameters.

This is how a layer runs outside ``torch.compile``. The custom operators of ``_ops`` cost some ten times its
overhead for each call, so they are used only where a compiler needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence

import torch
from torch.autograd.function import once_differentiable

from ..errors import ConnectionLost
from ._alphas import alphas_of
from ._pass import Pass, share_out, wanted

if TYPE_CHECKING:
    from ._layer import SeededLayer

#: Arguments of ``Blend`` before those of which there may be many.
_FIRST = 5


def run(layer: SeededLayer, x: torch.Tensor, h: Optional[torch.Tensor]) -> torch.Tensor:
    """``h`` blended with the layer's live seeds, recorded for autograd where anything wants a gradient. ``h`` is None
    where the daemon runs the host."""
    if not x.numel() or (h is not None and not h.numel()):
        return layer._host(x) if h is None else h
    alphas, tensors = alphas_of(layer), tensors_of(layer)
    if recorded(x, h, alphas, tensors):
        return Blend.apply(layer, None, x, h, len(alphas), *alphas, *tensors)
    return Pass(layer, x, h, 0, alphas).settle(h)


def tensors_of(layer: SeededLayer) -> List[torch.Tensor]:
    """The parameters of what is grafted, and of a host in the daemon."""
    tensors: List[torch.Tensor] = []
    for seed in layer._grafted:
        tensors += seed._tensors
    if layer._hosted is not None:
        tensors += layer._hosted.tensors
    return tensors


def recorded(
    x: torch.Tensor, h: Optional[torch.Tensor], alphas: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]
) -> bool:
    """Whether autograd will want anything of a pass."""
    return torch.is_grad_enabled() and (
        x.requires_grad
        or (h is not None and h.requires_grad)
        or any(alpha.requires_grad for alpha in alphas)
        or any(tensor.requires_grad for tensor in tensors)
    )


class Blend(torch.autograd.Function):
    """``started`` is the pass if it is under way already. ``many`` are ``count`` blend factors, then parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: SeededLayer,
        started: Optional[Pass],
        x: torch.Tensor,
        h: Optional[torch.Tensor],
        count: int,
        *many: Any,
    ) -> Any:
        alphas, tensors = many[:count], many[count:]
        if started is None:
            want_x, want_many = ctx.needs_input_grad[2], ctx.needs_input_grad[_FIRST:]
            want = wanted(layer, want_x, any(want_many[count:]), any(want_many[:count]))
            started = Pass(layer, x, h, want, alphas)
        y = started.settle(h)
        # Another tensor, or what writes to y in place would be refused.
        y = y.clone() if y is h else y
        ctx.started, ctx.count = started, count
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
        needs, first = ctx.needs_input_grad, _FIRST + ctx.count
        grads: List[Optional[torch.Tensor]] = [None] * (first + len(saved))
        if needs[3]:
            grads[3] = started.grad_h(grad)
        if started.ticket is not None:
            try:
                gradients = started.backward(grad, h)
            except ConnectionLost:
                started.layer._go_on_alone()
                raise
            if needs[2]:
                grads[2] = gradients.input
            for place, gradient in enumerate(gradients.alphas, _FIRST):
                if needs[place]:
                    grads[place] = torch.tensor(gradient)
            if gradients.parameters is not None:
                for place, gradient in share_out(started, gradients.parameters):
                    if needs[first + place]:
                        grads[first + place] = gradient
        return tuple(grads)
