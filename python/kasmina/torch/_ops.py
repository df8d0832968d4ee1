"""A pass as custom operators, which ``torch.compile`` keeps whole.

The compiler sees tensors alone. So the layer is a number in a table, and what ties a backward to its forward is
a tensor too, the token: it holds the pass's number, and the pass lives as long as the token's memory does. The
operators are marked as random ones, so that no two calls are made one and none is left out or run twice.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from .._layout import WANT_GRAD_ALPHAS, WANT_GRAD_INPUT, WANT_GRAD_PARAMETERS
from ..errors import ConnectionLost, TicketError, UsageError
from . import _gpu
from ._alone import Alone, elsewhere
from ._alphas import alphas_of
from ._function import once, wanted_of
from ._pass import Pass, part, ran_of, running, weights_of

if TYPE_CHECKING:
    from ._layer import SeededLayer

_handles = itertools.count(1)
_layers: "weakref.WeakValueDictionary[int, SeededLayer]" = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
_passes: "Dict[int, Union[Pass, Alone]]" = {}
_RANDOM = (torch.Tag.nondeterministic_seeded,)
if hasattr(torch.Tag, "cudagraph_unsafe"):
    # Each pass is another submission to the daemon.
    _RANDOM += (torch.Tag.cudagraph_unsafe,)


def register(layer: SeededLayer) -> int:
    """The number by which compiled code finds a layer as long as it lives."""
    handle = next(_handles)
    _layers[handle] = layer
    return handle


def blend(layer: SeededLayer, x: torch.Tensor, h: Optional[torch.Tensor]) -> torch.Tensor:
    """What ``run`` computes. Traced by the compiler."""
    alphas, tensors = alphas_of(layer), weights_of(layer._grafted, layer._hosted)
    want = wanted_of(layer, x, h, alphas, tensors)
    want = -1 if want is None else want
    y, _ = torch.ops.kasmina.blend(x, [] if h is None else [h], alphas, tensors, layer._handle, want)
    return y


def settle(layer: SeededLayer, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, after kernels that have become ready, or have come back, were taken over."""
    return torch.ops.kasmina.settle(tensor, layer._handle)


def _layer(handle: int) -> SeededLayer:
    layer = _layers.get(handle)
    if layer is None:
        raise UsageError("compiled code runs a layer that is gone: compile the model again")
    return layer


@torch.library.custom_op("kasmina::settle", mutates_args=(), tags=_RANDOM)
def _settle(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    layer = _layer(handle)
    if layer._arrived:
        layer._take_over()
    if layer._loading:
        layer._finish_grafts()
    if layer._unhosted:
        elsewhere(layer._hand_over)
    return tensor.clone()


@_settle.register_fake
def _(tensor: torch.Tensor, handle: int) -> torch.Tensor:
    return torch.empty_like(tensor)


_settle.register_autograd(lambda ctx, grad: (grad, None))


@torch.library.custom_op("kasmina::blend", mutates_args=(), tags=_RANDOM)
def _blend(
    x: torch.Tensor,
    h: List[torch.Tensor],
    alphas: List[torch.Tensor],
    tensors: List[torch.Tensor],
    handle: int,
    want: int,
) -> Tuple[torch.Tensor, torch.Tensor]:
    layer = _layer(handle)
    held: Any = None

    def alone() -> torch.Tensor:
        nonlocal held
        if h:
            return h[0].clone()
        held = Alone(layer, x, want)
        return held.y.detach().clone()

    def compute() -> torch.Tensor:
        nonlocal held
        # A copy of x: the compiler may put something else where it lay before the backward has read it.
        with layer._changing:
            if not h:
                layer._hosted.settle(layer.training)
            held = Pass(layer, running(layer).ran, x, h[0] if h else None, max(want, 0), alphas, copy=want > 0)
        y = held.settle(h[0] if h else None)
        return y.clone() if h and y is h[0] else y

    is_there = layer._grafted if h else layer._hosted is not None and layer._hosted.present
    if not x.numel() or (h and not h[0].numel()) or not is_there:
        y = alone()
    else:
        y = layer._guarded(alone, compute)
    number = 0
    if want >= 0 and held is not None:
        number = next(_numbers)
        _passes[number] = held
    return y, _token(number)


def _token(number: int) -> torch.Tensor:
    array = np.array([number], np.int64)
    if number:
        weakref.finalize(array, _passes.pop, number, None).atexit = False
    return torch.from_numpy(array)


@_blend.register_fake
def _(
    x: torch.Tensor,
    h: List[torch.Tensor],
    alphas: List[torch.Tensor],
    tensors: List[torch.Tensor],
    handle: int,
    want: int,
) -> Tuple[torch.Tensor, torch.Tensor]:
    y = h[0].new_empty(h[0].shape) if h else x.new_empty(_layer(handle)._hosted.output_of(x))
    return y, x.new_empty((1,), dtype=torch.int64, device="cpu")


@torch.library.custom_op("kasmina::blend_backward", mutates_args=(), tags=_RANDOM)
def _blend_backward(
    grad: torch.Tensor,
    token: torch.Tensor,
    h: List[torch.Tensor],
    tensors: List[torch.Tensor],
    shape: Sequence[int],
    handle: int,
    want: int,
    gradient_bytes: int,
    alphas: int,
) -> List[torch.Tensor]:
    number = int(token)
    if not number:  # the daemon was gone or had nothing to run: y was h
        return [grad.clone(), *_nothing(grad, shape, want, gradient_bytes, alphas)]
    passed = _passes.get(number)
    if passed is None:
        raise TicketError("the graph of this pass is gone: run the forward again", code="ticket.unknown")
    grad = grad.contiguous()
    if isinstance(passed, Alone):
        return [grad.clone(), *passed.backward(grad, shape, want, gradient_bytes, alphas)]
    grad_h = grad if passed.hosted else passed.grad_h(grad)
    found = [grad_h.clone() if grad_h is grad else grad_h]
    if passed.ticket is None:
        return found + _nothing(grad, shape, want, gradient_bytes, alphas)
    try:
        gradients = passed.backward(grad, h[0] if h else None)
    except ConnectionLost:
        passed.layer._go_on_alone()
        raise
    if want & WANT_GRAD_INPUT:
        found.append(gradients.input)
    if want & WANT_GRAD_PARAMETERS:
        found.append(_whole(passed, gradients.parameters, gradient_bytes))
    if alphas:
        found.append(torch.tensor(gradients.alphas or [0.0] * alphas, dtype=torch.float32, device="cpu"))
    return found


def _whole(passed: Pass, block: Any, gradient_bytes: int) -> torch.Tensor:
    """The gradients of every grafted seed, zeros for those that did not run."""
    live = passed.live()
    if block is not None and len(live) == len(passed.ran):
        return block
    device = _gpu.device_of(passed.remote.client)
    whole = torch.zeros(gradient_bytes // 4, dtype=torch.float32, device=device)
    start = read = 0
    for ran in passed.ran:
        count = ran.grafted.gradient_bytes // 4
        if ran in live:
            whole[start : start + count] = block[read : read + count]
            read += count
        start += count
    return whole


def _nothing(
    grad: torch.Tensor, shape: Sequence[int], want: int, gradient_bytes: int, alphas: int
) -> List[torch.Tensor]:
    found = []
    if want & WANT_GRAD_INPUT:
        found.append(grad.new_zeros(shape))
    if want & WANT_GRAD_PARAMETERS:
        found.append(grad.new_zeros(gradient_bytes // 4, dtype=torch.float32))
    if alphas:
        found.append(grad.new_zeros(alphas, dtype=torch.float32, device="cpu"))
    return found


@_blend_backward.register_fake
def _(
    grad: torch.Tensor,
    token: torch.Tensor,
    h: List[torch.Tensor],
    tensors: List[torch.Tensor],
    shape: Sequence[int],
    handle: int,
    want: int,
    gradient_bytes: int,
    alphas: int,
) -> List[torch.Tensor]:
    return [grad.new_empty(grad.shape), *_nothing(grad, shape, want, gradient_bytes, alphas)]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, h, alphas, tensors, ctx.handle, ctx.want = inputs
    layer = _layer(ctx.handle)
    weighs = bool(alphas) or layer.alpha_gradients
    needs_h = bool(layer._live) and (layer.blend == "multiply" or (layer.blend == "convex" and weighs))
    ctx.has_h, ctx.needs_h = bool(h), bool(h) and needs_h and ctx.want > 0
    ctx.shape, ctx.alphas = x.shape, [alpha.dtype for alpha in alphas]
    ctx.save_for_backward(output[1], *(h if ctx.needs_h else []), *tensors)


def _gradients(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
    # Enabled by create_graph=True alone; code that a compiler made is differentiated once anyway.
    twice = torch.is_grad_enabled() and not torch.compiler.is_compiling() and not _is_traced(grad)
    if not twice:
        return _gradients_of(ctx, grad)
    with torch.no_grad():
        grad_x, grads_h, weights, grads, *rest = _gradients_of(ctx, grad)
    marked = iter(once(_layer(ctx.handle).name, [grad_x, *grads_h, *weights, *grads]))
    grad_x, grads_h, weights, grads = (
        next(marked), [next(marked) for _ in grads_h], [next(marked) for _ in weights], [next(marked) for _ in grads]
    )
    return (grad_x, grads_h, weights, grads, *rest)


def _is_traced(tensor: torch.Tensor) -> bool:
    """Whether it stands for another in a compiler's trace."""
    return type(tensor) is not torch.Tensor


def _gradients_of(ctx: Any, grad: torch.Tensor) -> Any:
    token, *tensors = ctx.saved_tensors
    h = [tensors.pop(0)] if ctx.needs_h else []
    layer, want = _layer(ctx.handle), max(ctx.want, 0)
    entries = [(ran.grafted.gradient_bytes, ran.grafted.parameters) for ran in ran_of(layer._grafted, layer._hosted)]
    count = len(ctx.alphas) if want & WANT_GRAD_ALPHAS else 0
    found = torch.ops.kasmina.blend_backward(
        grad, token, h, tensors, ctx.shape, ctx.handle, want, sum(size for size, _ in entries), count
    )
    grad_h = found.pop(0)
    grad_x = found.pop(0) if want & WANT_GRAD_INPUT else None
    grads: List[Any] = [None] * len(tensors)
    if want & WANT_GRAD_PARAMETERS:
        block, place, start = found.pop(0), 0, 0
        for size, parameters in entries:
            for entry in parameters:
                if tensors[place].requires_grad:
                    grads[place] = part(block, start + entry.offset, entry)
                place += 1
            start += size
    weights = [found[0][place].to(dtype) for place, dtype in enumerate(ctx.alphas)] if count else [None] * len(ctx.alphas)
    return grad_x, [grad_h] if ctx.has_h else [], weights, grads, None, None


_blend.register_autograd(_gradients, setup_context=_keep)
