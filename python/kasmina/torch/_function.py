"""A pass as an autograd function: y from x, the host's output, learnt blend factors and parameters.

This is how a layer runs outside ``torch.compile``. The custom operators of ``_ops`` cost some ten times its
overhead for each call, so they are used only where a compiler needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence

import torch

from ..errors import ConnectionLost, UsageError
from ._ahead import Ahead, collect, goes_ahead
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
    # Another thread may be putting a kernel into a seed; what the daemon is told and what autograd is must be one.
    with layer._changing:
        if layer._outstanding:
            collect(layer)
        alphas, tensors = alphas_of(layer), tensors_of(layer)
        is_recorded = recorded(x, h, alphas, tensors)
        want = wanted_of(layer, x, alphas, tensors) if is_recorded else 0
        kind = Ahead if goes_ahead(layer, h, alphas, want) else Pass
        started = kind(layer, x, h, want, alphas)
    return Blend.apply(layer, started, x, h, len(alphas), *alphas, *tensors) if is_recorded else started.settle(h)


def tensors_of(layer: SeededLayer) -> List[torch.Tensor]:
    """The parameters of what is grafted, and of a host in the daemon."""
    tensors: List[torch.Tensor] = []
    for seed in layer._grafted:
        tensors += seed._tensors
    if layer._hosted is not None:
        tensors += layer._hosted.tensors
    return tensors


def wanted_of(
    layer: SeededLayer, x: torch.Tensor, alphas: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]
) -> int:
    """The flags of the gradients that a backward may ask for."""
    trains = [any(tensor.requires_grad for tensor in many) for many in (tensors, alphas)]
    return wanted(layer, x.requires_grad, *trains)


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
    """``started`` is the pass, which is under way. ``many`` are ``count`` blend factors, then parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: SeededLayer,
        started: Pass,
        x: torch.Tensor,
        h: Optional[torch.Tensor],
        count: int,
        *many: Any,
    ) -> Any:
        tensors = many[count:]
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
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        # Enabled by create_graph=True alone.
        if not torch.is_grad_enabled():
            return tuple(Blend._gradients(ctx, grad))
        with torch.no_grad():
            gradients = Blend._gradients(ctx, grad)
        return tuple(once(ctx.started.layer.name, gradients))

    @staticmethod
    def _gradients(ctx: Any, grad: torch.Tensor) -> List[Optional[torch.Tensor]]:
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
                    grads[place] = torch.tensor(gradient, dtype=torch.float32, device="cpu")
            if gradients.parameters is not None:
                for place, gradient in share_out(started, gradients.parameters):
                    if needs[first + place]:
                        grads[first + place] = gradient
        return grads


class Once(torch.autograd.Function):
    """Gradients that cannot be differentiated again. PyTorch's ``once_differentiable`` says so only where the gradient
    that came in requires one itself, which that of a sum does not: a penalty on gradients would lack its own."""

    @staticmethod
    def forward(ctx: Any, name: str, _: torch.Tensor, *gradients: torch.Tensor) -> Any:
        ctx.name = name
        return tuple(gradient.clone() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UsageError(
            f"gradients of gradients are not computed through layer {ctx.name!r}: what the daemon gave as gradients "
            "(create_graph=True) was differentiated again. Leave the layer out of what a gradient penalty looks at, or "
            "take the penalty without its kernels"
        )


def once(name: str, gradients: Sequence[Optional[torch.Tensor]]) -> List[Optional[torch.Tensor]]:
    """The gradients of layer ``name``, so that a differentiation of them is an error."""
    there = [gradient for gradient in gradients if gradient is not None]
    marked = iter(Once.apply(name, torch.empty(0, requires_grad=True), *there) if there else ())
    return [None if gradient is None else next(marked) for gradient in gradients]
