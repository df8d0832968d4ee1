"""A pass of a layer on tensors: under way, done, and its way back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

import numpy as np
import torch

from .._lane import Completion, Lane
from .._layer import Entry, Grafted, Ticket, dims, failures_of
from .._layout import (
    BACKWARD,
    DTYPE_CODES,
    FORWARD,
    TAKE_TICKET,
    TRAIN,
    WANT_GRAD_ALPHAS,
    WANT_GRAD_INPUT,
    WANT_GRAD_PARAMETERS,
)
from ._arena import copied, in_arena, owning_tensor

if TYPE_CHECKING:
    from ._layer import SeededLayer
    from ._seed import Seed

_I64_MAX = (1 << 63) - 1


def wanted(layer: SeededLayer, x: bool, parameters: bool) -> int:
    """The flags that say what a backward will ask for."""
    want = WANT_GRAD_INPUT if x else 0
    if parameters:
        want |= WANT_GRAD_PARAMETERS
    if layer.alpha_gradients:
        want |= WANT_GRAD_ALPHAS
    return want


class Ran(NamedTuple):
    """A seed as it was when a pass began."""

    seed: Seed
    grafted: Grafted
    tensors: List[torch.nn.Parameter]


class Gradients(NamedTuple):
    """What the daemon's backward yields."""

    #: Of x.
    input: Optional[torch.Tensor]
    #: The blocks of the seeds that ran, in order, each of its ``gradient_bytes``.
    parameters: Optional[torch.Tensor]


class Pass:
    """A forward that is published, and what its backward needs.

    ``want`` are the flags of the gradients that will be asked for; 0 takes no ticket. With ``copy`` the
    daemon reads a copy of x even where x lies in shared memory, so that nobody can write to it meanwhile.
    A pass that dies under way gives back what it took.
    """

    __slots__ = ("layer", "remote", "shape", "want", "ran", "factor", "completion", "ticket", "train",
                 "_sequence", "_held", "_target", "__weakref__")

    def __init__(
        self, layer: SeededLayer, x: torch.Tensor, h: torch.Tensor, want: int, copy: bool = False
    ) -> None:
        self._sequence = -1
        self.layer = layer
        self.shape = tuple(x.shape)
        self.want = want
        self.ran = [Ran(seed, seed._grafted, seed._tensors) for seed in layer._grafted]
        #: P of a multiplying blend.
        self.factor: Optional[torch.Tensor] = None
        self.completion: Optional[Completion] = None
        self.ticket: Optional[Ticket] = None
        # Looked at once: after the daemon's return a layer is another, on another connection.
        self.remote = layer.remote
        client = self.remote.client
        self.train = layer.training
        flags = TRAIN if self.train else 0
        if want:
            flags |= want | TAKE_TICKET
        offset, block = copied(client, x.detach()) if copy else in_arena(client, x.detach())
        # Where x lies in the arena it is the tensor itself that must live on.
        self._held = x if block is None else block
        out_bytes = h.numel() * h.element_size()
        self._target = client._allocate(out_bytes)
        self._sequence = client._lane.begin(
            (self._held, self._target),
            FORWARD,
            flags,
            self.remote.number,
            DTYPE_CODES[self.remote.dtype],
            0,
            int(layer._random.random_(0, _I64_MAX)) if layer.training else 0,
            (offset, x.numel() * x.element_size(), self._target.offset, out_bytes, 0, 0, 0, 0, 0, 0, 0, 0),
            dims(self.shape, tuple(h.shape)),
        )

    def __del__(self) -> None:
        if self._sequence >= 0:
            self.lane.abandon(self._sequence, self.remote.number)

    @property
    def lane(self) -> Lane:
        """Where it is under way."""
        return self.remote.client._lane

    @property
    def x_lies_there(self) -> bool:
        """Whether the daemon reads x itself, and not a copy, again in the backward."""
        return self.ticket is not None and isinstance(self.ticket.held, torch.Tensor)

    @property
    def needs_h(self) -> bool:
        """Whether the backward needs the host's output."""
        blend = self.layer.blend
        return blend == "multiply" or (blend == "convex" and bool(self.want & WANT_GRAD_ALPHAS))

    def finished(self) -> bool:
        """Whether the daemon is done. Never waits."""
        return self._sequence < 0 or self.lane.finished(self._sequence)

    def complete(self, deadline: Optional[float] = None) -> Completion:
        """Waits for the daemon. Raises its refusal, or ``TimeoutError`` and the pass goes on."""
        if self.completion is None:
            layer = self.layer
            try:
                completion = self.lane.finish(self._sequence, self.remote.number, deadline)
            except TimeoutError:
                raise
            except BaseException:
                self._sequence = -1
                raise
            self._sequence = -1
            if completion.ticket:
                self.ticket = Ticket(self.remote, completion.ticket, self._held)
            self._held = None
            self.completion = completion
            # First, because a failure has the daemon asked, which has counted this pass already.
            if layer._moving:
                layer._note_moving(completion.live_mask, self.train)
            if completion.failed_mask or layer.last_failures:
                layer._note_failures(failures_of(completion))
        return self.completion

    def settle(self, h: torch.Tensor) -> torch.Tensor:
        """y, of the host's output and what the daemon computed. Once."""
        completion = self.completion or self.complete()
        layer, client = self.layer, self.remote.client
        out = owning_tensor(client, self._target, h.dtype, h.numel()).view(h.shape)
        self._target = None
        if layer.blend == "multiply":
            self.factor = out.clone() if client._heap.crowded else out
            return h * self.factor
        if layer.blend == "convex":
            if completion.blend_weight < 1.0:
                out.add_(h, alpha=1.0 - completion.blend_weight)
        else:
            out.add_(h)
        return out.clone() if client._heap.crowded else out

    def grad_h(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the host's output."""
        if self.layer.blend == "convex":
            return grad * (1.0 - self.completion.blend_weight)
        return grad if self.layer.blend == "residual" else grad * self.factor

    def live(self) -> List[Ran]:
        """The seeds that ran."""
        mask = self.completion.live_mask
        return [ran for ran in self.ran if mask >> ran.seed.index & 1]

    def backward(self, grad: torch.Tensor, h: Optional[torch.Tensor]) -> Gradients:
        """Runs the daemon's backward, once, of the gradient of y. ``h`` where ``needs_h``."""
        # Of a connection that is gone, if the daemon has come back since: it says so.
        layer, remote, want = self.layer, self.remote, self.want
        client = remote.client
        if layer.blend == "multiply":
            grad = grad * h
        grad_bytes = grad.numel() * grad.element_size()
        offset, held = in_arena(client, grad)
        live = self.live()
        x_elements = math.prod(self.shape)
        x_bytes = x_elements * grad.element_size()
        parameter_bytes = sum(ran.grafted.gradient_bytes for ran in live)
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
        number = self.ticket.spend()
        completion = client._lane.run(BACKWARD, want, remote.number, 0, number, 0, tuple(places))
        self.ticket.held = held = None  # x and the gradient may go now
        if completion.failed_mask:
            layer._note_failures(failures_of(completion))
        crowded = client._heap.crowded
        grad_x = block = None
        if to_x is not None:
            grad_x = owning_tensor(client, to_x, grad.dtype, x_elements).view(self.shape)
            grad_x = grad_x.clone() if crowded else grad_x
        if to_parameters is not None and parameter_bytes:
            block = owning_tensor(client, to_parameters, torch.float32, parameter_bytes // 4)
            block = block.clone() if crowded else block
        if to_alphas is not None:
            alphas = client._array(to_alphas, np.float32, (seeds,)).tolist()
            # Of a convex blend whose weights are not clamped, raising alpha also takes from h.
            taken = 0.0
            if layer.blend == "convex" and self.completion.alpha_total <= 1.0 and h is not None:
                taken = float(torch.dot(h.reshape(-1).float(), grad.reshape(-1).float()))
            for ran in live:
                ran.seed.alpha_grad = alphas[ran.seed.index] - taken
        return Gradients(grad_x, block)


def part(block: torch.Tensor, offset: int, entry: Entry) -> torch.Tensor:
    """One parameter's gradient, as a view of the block of all."""
    if entry.dtype == "float32":
        return block[offset // 4 : offset // 4 + entry.elements].view(entry.shape)
    raw = block.view(torch.uint8)[offset : offset + entry.nbytes]
    return raw.view(getattr(torch, entry.dtype)).view(entry.shape)


def share_out(passed: Pass, block: torch.Tensor) -> List[Tuple[int, Optional[torch.Tensor]]]:
    """For each parameter of each grafted seed, in order, its place in that order and its gradient."""
    parts: List[Tuple[int, Optional[torch.Tensor]]] = []
    place, start = 0, 0
    for ran in passed.ran:
        runs = passed.completion.live_mask >> ran.seed.index & 1
        for entry in ran.grafted.parameters:
            parts.append((place, part(block, start + entry.offset, entry) if runs else None))
            place += 1
        if runs:
            start += ran.grafted.gradient_bytes
    return parts
