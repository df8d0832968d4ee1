"""A host that the daemon was to run, run here, within compiled code."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Callable, List, Sequence

import torch

from .._layout import WANT_GRAD_INPUT, WANT_GRAD_PARAMETERS

if TYPE_CHECKING:
    from ._layer import SeededLayer


def elsewhere(work: Callable[[], Any]) -> Any:
    """Does work in a thread of its own and waits for it: what an operator's own thread does is not recorded by
    autograd, and PyTorch traces nothing in it."""
    results: List[Any] = []

    def do() -> None:
        try:
            results.append((work(), None))
        except BaseException as error:
            results.append((None, error))

    thread = threading.Thread(target=do, name="kasmina-host")
    thread.start()
    thread.join()
    result, error = results[0]
    if error is not None:
        raise error
    return result


class Alone:
    """The host's forward, which its backward is waiting for. Compiled code that was made for a daemon has no other way
    to the host in the call in which the daemon is found to be gone; the next is compiled anew."""

    def __init__(self, layer: SeededLayer, x: torch.Tensor, want: int) -> None:
        self._layer = layer
        self._x = x.detach().clone().requires_grad_(bool(max(want, 0) & WANT_GRAD_INPUT))

        def forward() -> torch.Tensor:
            with torch.set_grad_enabled(want >= 0):
                return layer._host(self._x)

        #: What the host gave.
        self.y: torch.Tensor = elsewhere(forward)

    def backward(
        self, grad: torch.Tensor, shape: Sequence[int], want: int, gradient_bytes: int, alphas: int
    ) -> List[torch.Tensor]:
        """The gradients that the daemon's backward would yield, without the seeds'."""
        hosted = self._layer._hosted
        entries = hosted._grafted.parameters if hosted is not None else []
        sought = [self._x] if want & WANT_GRAD_INPUT else []
        trained = [
            (entry, tensor)
            for entry, tensor in zip(entries, hosted.tensors if hosted is not None else [])
            if want & WANT_GRAD_PARAMETERS and tensor.requires_grad
        ]
        sought += [tensor for _, tensor in trained]
        gradients: List[Any] = []
        if sought and self.y.requires_grad:
            gradients = list(elsewhere(lambda: torch.autograd.grad(self.y, sought, grad, allow_unused=True)))
        found: List[torch.Tensor] = []
        if want & WANT_GRAD_INPUT:
            first = gradients.pop(0) if gradients else None
            found.append(grad.new_zeros(shape) if first is None else first)
        if want & WANT_GRAD_PARAMETERS:
            block = grad.new_zeros(gradient_bytes // 4, dtype=torch.float32)
            raw = block.view(torch.uint8)
            # The host's block is the last.
            start = gradient_bytes - hosted._grafted.gradient_bytes if hosted is not None else 0
            for (entry, _), gradient in zip(trained, gradients):
                if gradient is not None:
                    place = raw[start + entry.offset : start + entry.offset + entry.nbytes]
                    place.view(gradient.dtype).view(entry.shape).copy_(gradient)
            found.append(block)
        if alphas:
            found.append(torch.zeros(alphas, dtype=torch.float32, device="cpu"))
        return found
