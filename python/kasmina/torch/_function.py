"""A pass as an autograd function: y from x, the host's output, learnt blend factors and parameters.

This is how a layer runs outside ``torch.compile``. The custom operators of ``_ops`` cost some ten times its
overhead for each call, so they are used only where a compiler needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence

import torch

from .._layout import WANT_GRAD_ALPHAS, WANT_GRAD_INPUT, WANT_GRAD_PARAMETERS
from ..errors import ConnectionLost, UsageError
from ._ahead import Ahead, collect, goes_ahead
from ._alphas import alphas_of
from ._pass import Pass, running, share_out

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
        alphas, (_, _, ran, tensors) = alphas_of(layer), running(layer)
        want = wanted_of(layer, x, h, alphas, tensors)
        kind = Ahead if goes_ahead(layer, h, alphas, want or 0) else Pass
        started = kind(layer, ran, x, h, want or 0, alphas)
    if want is None:
        return started.settle(h)
    return Blend.apply(layer, started, x, h, len(alphas), *alphas, *tensors)


def wanted_of(
    layer: SeededLayer,
    x: torch.Tensor,
    h: Optional[torch.Tensor],
    alphas: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
) -> Optional[int]:
    """The flags of the gradients that a backward may ask the daemon for; None where autograd wants nothing."""
    if not torch.is_grad_enabled():
        return None
    of_x, of_alphas, of_weights = x.requires_grad, _trains(alphas), _trains(weights)
    if not (of_x or of_alphas or of_weights or (h is not None and h.requires_grad)):
        return None
    # A seed that learns behind the layer has no gradient of x.
    want = WANT_GRAD_INPUT if of_x and (layer._live or layer._hosted is not None) else 0
    if of_weights:
        want |= WANT_GRAD_PARAMETERS
    if of_alphas or (layer.alpha_gradients and layer._live):
        want |= WANT_GRAD_ALPHAS
    return want


def _trains(tensors: Sequence[torch.Tensor]) -> bool:
    for tensor in tensors:
        if tensor.requires_grad:
            return True
    return False


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
        y = started.settle(h)
        # Another tensor, or what writes to y in place would be refused.
        y = y.clone() if y is h else y
        ctx.started, ctx.count = started, count
        # Saved so that a change between forward and backward raises as it does in PyTorch: the daemon
        # reads the parameters, and x where it was not copied, where they lie.
        ctx.save_for_backward(x if started.x_lies_there else None, h if started.needs_h else None, *many[count:])
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
        _, h, *tensors = ctx.saved_tensors
        needs, first = ctx.needs_input_grad, _FIRST + ctx.count
        grads: List[Optional[torch.Tensor]] = [None] * (first + len(tensors))
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
                grads[first:] = share_out(started, gradients.parameters, needs[first:])
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
