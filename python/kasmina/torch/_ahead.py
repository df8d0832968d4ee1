"""Passes on a GPU that nobody waits for: streams do, and what became of them is seen with a later call."""

from __future__ import annotations

import functools
import math
import warnings
from typing import TYPE_CHECKING, Any, Deque, NamedTuple, Optional, Tuple

import numpy as np
import torch

from .._cuda import Neutral, Sequel
from .._lane import Lane
from .._layer import Ticket, failures_of
from .._layout import WANT_GRAD_ALPHAS
from ..errors import ConnectionLost, ConnectionWarning, KasminaError
from ._arena import owning_tensor
from ._pass import Pass

if TYPE_CHECKING:
    from ._layer import SeededLayer

#: Where no gradients of a slot are wanted.
_NOWHERE = 2**64 - 1
_HALVES = (torch.float16, torch.bfloat16)


class Outstanding(NamedTuple):
    """A submission whose completion nobody has looked at."""

    lane: Lane
    sequence: int
    #: The layer's number.
    layer: int
    #: Of the ticket that a forward takes or a backward spends, or 0.
    ticket: int
    is_backward: bool


@functools.cache
def _bytes_of(value: float, dtype: str) -> bytes:
    """A number as it lies in a tensor."""
    tensor = torch.full((1,), value, dtype=getattr(torch, dtype), device="cpu")
    return bytes(tensor.view(torch.uint8).tolist())


def goes_ahead(layer: SeededLayer, h: Optional[torch.Tensor], alphas: Any, want: int) -> bool:
    """Whether a pass can be left to the streams: nothing but numbers on the GPU come of it, and a refusal can be told
    later, with the host's output in the place of the layer's until then."""
    client = layer.remote.client
    on_gpu = client.gpu is not None and not client.wait_for_room_s
    return on_gpu and h is not None and not alphas and not layer._moving and not want & WANT_GRAD_ALPHAS


class Ahead(Pass):
    """A forward whose completion is not waited for, nor that of its backward."""

    __slots__ = ("_rest",)

    def _begin(self) -> None:
        assert self._submission is not None
        layer, client = self.layer, self.remote.client
        # Those that are to run, as far as it is known here.
        self.live_mask = sum(1 << seed.index for seed in layer._live)
        if self.train and self.want:
            self.live_mask |= sum(1 << seed.index for seed in layer._learning)
        self._rest = None
        if layer.blend == "convex":
            self._rest = owning_tensor(client, client._allocate(4), torch.float32, ())
        pattern = _bytes_of(float(layer.blend == "multiply"), self.remote.dtype)
        neutral = Neutral(client._base + self._target.offset, pattern, math.prod(self._output))
        lane, rest = self.lane, 0 if self._rest is None else self._rest.data_ptr()
        self._sequence = lane.begin(*self._submission, sequel=Sequel([neutral], rest))
        self.layer._published[0] = lane, self._sequence

    @property
    def is_h(self) -> bool:
        return False

    @property
    def needs_h(self) -> bool:
        return self.ticket is not None and self.layer.blend == "multiply"

    def settle(self, h: Optional[torch.Tensor]) -> torch.Tensor:
        """y, once the present stream comes to it."""
        assert h is not None
        client, lane, sequence = self.remote.client, self.lane, self._sequence
        number = sequence + 1 if self.want else 0
        self.layer._outstanding.append(Outstanding(lane, sequence, self.remote.number, number, False))
        if number:
            self.ticket = Ticket(self.remote, number, self._held)
        target, self._target, self._held = self._target, None, None
        self._sequence, self._submission = -1, None
        part = owning_tensor(client, target, h.dtype, self._output)
        if self.layer.blend == "multiply":
            self.factor = part.clone() if client._heap.crowded else part
            return h * self.factor
        if self._rest is None:
            return part + h
        # As a number would be, the factor is not rounded to a half.
        if part.dtype in _HALVES:
            return torch.addcmul(part.float(), h.float(), self._rest).to(part.dtype)
        return torch.addcmul(part, h, self._rest)

    def grad_h(self, grad: torch.Tensor) -> torch.Tensor:
        if self.layer.blend == "residual":
            return grad
        if self._rest is None:
            return grad * self.factor
        return (grad.float() * self._rest).to(grad.dtype) if grad.dtype in _HALVES else grad * self._rest

    def _spend(self, want: int, places: Tuple[int, ...], extra: Tuple[int, ...], blocks: Any) -> None:
        client, ticket = self.remote.client, self.ticket
        assert ticket is not None
        lane, number = ticket.layer.client._lane, ticket.number
        table = np.full(self.remote.seeds, _NOWHERE, np.uint64)
        start = 0
        for ran in self.live():
            table[ran.slot] = start
            start += ran.grafted.gradient_bytes
        held = None
        if places[9]:
            held = client._allocate(table.nbytes)
            client._array(held, table.dtype, table.shape)[...] = table
            extra = (held.offset, table.nbytes, *extra[2:])
        zeros = [Neutral(client._base + places[at], b"\0", places[at + 1]) for at in (6, 8) if places[at + 1]]
        sequence = ticket.begin_backward(want, places, extra, (blocks, held), Sequel(zeros, 0))
        ticket.held = None
        self.layer._outstanding.append(Outstanding(lane, sequence, self.remote.number, number, True))


def collect(layer: SeededLayer, waits: bool = False) -> None:
    """Looks at what became of earlier passes, of all or, without ``waits``, of those that are done. Raises what one was
    refused for; of its backward that is not said again."""
    with layer._changing:
        outstanding = layer._outstanding
        while outstanding:
            passed: Outstanding = outstanding[0]
            if not waits and not passed.lane.finished(passed.sequence):
                return
            outstanding.popleft()
            try:
                completion = passed.lane.finish(passed.sequence, passed.layer)
            except ConnectionLost:
                if passed.is_backward:
                    warnings.warn(
                        f"the daemon was gone before a backward of layer {layer.name!r} was done: its seeds' part of the "
                        "gradients was zeros",
                        ConnectionWarning,
                        stacklevel=5,
                    )
                continue
            except KasminaError:
                if passed.lane is not layer.remote.client._lane:
                    continue  # another daemon is here by now, and this is nothing to it
                ticket = passed.lane, passed.ticket
                if passed.is_backward and ticket in layer._refused:
                    layer._refused.discard(ticket)
                    continue
                if not passed.is_backward and passed.ticket:
                    # Those of another daemon are nothing to this one, whose numbers begin anew.
                    layer._refused = {other for other in layer._refused if other[0] is passed.lane} | {ticket}
                raise
            if completion.failed_mask or (layer._failures and not passed.is_backward):
                layer._note_failures(failures_of(completion))


def ignore(outstanding: Deque[Outstanding]) -> None:
    """Nobody will look at what became of these: their layer is gone."""
    while outstanding:
        passed = outstanding.popleft()
        passed.lane.ignore(passed.sequence)
