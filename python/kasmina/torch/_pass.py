"""A pass of a layer on tensors: under way, done, and its way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from .._heap import Block
from .._lane import Completion
from .._layer import Entry, Grafted, Ticket, extents, failures_of
from .._layout import FORWARD, TAKE_TICKET, TRAIN, WANT_GRAD_ALPHAS, WANT_GRAD_INPUT, WANT_GRAD_PARAMETERS
from .._room import Room
from ..errors import ArenaFull, SessionError
from ._alphas import given
from ._arena import copied, in_arena, owning_tensor

if TYPE_CHECKING:
    from ._host import Hosted
    from ._layer import SeededLayer
    from ._seed import Seed

_I64_MAX = (1 << 63) - 1

#: Of a submission: offset and bytes of blend factors, and of a gradient for seeds in training.
Extra = Tuple[int, int, int, int]
_NO_EXTRA: Extra = (0, 0, 0, 0)
#: Where x lies, the block it was copied to, the output's, and that of the blend factors with what is said of it.
Taken = Tuple[int, Optional[Block], Block, Optional[Block], Extra]


class Ran(NamedTuple):
    """A seed, or the layer's host, as it was when a pass began."""

    slot: int
    grafted: Grafted
    #: None of the host.
    seed: Optional[Seed]
    #: Whether it goes into the output by its blend factor.
    blends: bool


class Gradients(NamedTuple):
    """What the daemon's backward yields."""

    #: Of x.
    input: Optional[torch.Tensor]
    #: The blocks of those that ran, in order, each of its ``gradient_bytes``.
    parameters: Optional[torch.Tensor]
    #: Of the learnt blend factors that the pass was given, in order.
    alphas: List[float]


class Running(NamedTuple):
    """What may run in a pass of a layer, as long as the layer has these seeds and this host."""

    seeds: List[Seed]
    hosted: Optional[Hosted]
    #: In the order of the slots.
    ran: List[Ran]
    #: The parameters of all.
    weights: List[torch.Tensor]


def running(layer: SeededLayer) -> Running:
    """What may run in a pass now. Under ``_changing``, as whoever changes a seed's or the host's tensors sets
    ``_running`` back; what only sorts the seeds anew may do so meanwhile."""
    known, seeds, hosted = layer._running, layer._grafted, layer._hosted
    if known is None or known.seeds is not seeds or known.hosted is not hosted:
        known = layer._running = Running(seeds, hosted, ran_of(seeds, hosted), weights_of(seeds, hosted))
    return known


def ran_of(seeds: List[Seed], hosted: Optional[Hosted]) -> List[Ran]:
    """Seeds and a host in the daemon as they are now."""
    ran = [Ran(seed.index, seed._grafted, seed, seed._role == "blend") for seed in seeds]
    if hosted is not None:
        ran.append(Ran(hosted.index, hosted._grafted, None, False))
    return ran


def weights_of(seeds: List[Seed], hosted: Optional[Hosted]) -> List[torch.Tensor]:
    """The parameters of seeds and of a host in the daemon."""
    tensors = [tensor for seed in seeds for tensor in seed._tensors]
    return tensors if hosted is None else tensors + hosted.tensors


class Pass:
    """A forward that is published, and what its backward needs.

    ``h`` is the host's output, or None where the daemon runs the host. ``want`` are the flags of the gradients that
    will be asked for; 0 takes no ticket. With ``copy`` the daemon reads a copy of x even where x lies in shared memory,
    so that nobody can write to it meanwhile. With ``waits`` it is
    waited for room in the arena here, as long as the session wants that. ``alphas`` are the learnt blend factors. A pass that dies under way gives
    back what it took.
    """

    __slots__ = ("layer", "remote", "lane", "shape", "want", "ran", "live_mask", "learnt", "hosted", "factor",
                 "completion", "ticket", "train", "again", "_bytes", "_output", "_sequence", "_held", "_target",
                 "_submission", "_room", "__weakref__")

    def __init__(
        self,
        layer: SeededLayer,
        ran: List[Ran],
        x: torch.Tensor,
        h: Optional[torch.Tensor],
        want: int,
        alphas: Sequence[torch.Tensor] = (),
        copy: bool = False,
        waits: bool = True,
    ) -> None:
        self._sequence = -1
        self.layer, self.want = layer, want
        for seed in layer._grafted:
            seed._settle_places()
        #: What may run.
        self.ran = ran
        #: The seeds whose blend factors were given.
        self.learnt = [index for index, _ in layer._learnt] if alphas else []
        self.hosted = h is None
        #: P of a multiplying blend.
        self.factor: Optional[torch.Tensor] = None
        self.completion: Optional[Completion] = None
        self.ticket: Optional[Ticket] = None
        #: Made when there is no room.
        self._room: Optional[Room] = None
        # Looked at once: after the daemon's return a layer is another, on another connection.
        self.remote = remote = layer.remote
        #: Where it is under way.
        self.lane = remote.client._lane
        self.train = layer.training
        flags = TRAIN if self.train else 0
        if want:
            flags |= want | TAKE_TICKET
        number = 0  # where nothing is random
        if self.train:
            layer._random.random_(0, _I64_MAX)
            number = layer._drawn.item()
        #: The blend factors of the forward that this one repeats, of seeds on a schedule.
        self.again = layer._repeats.of(number, layer._moving) if layer._moving or layer._repeats.first else None
        self.shape = x.shape
        self._output = layer._hosted.output_of(x) if h is None else h.shape
        in_bytes, out_bytes, dims = extents(self.shape, self._output, remote.itemsize)
        self._bytes = in_bytes, out_bytes
        taken: Optional[Taken] = None
        try:
            taken = self._take(x, alphas, copy)
        except ArenaFull as full:
            if not waits or full.never or not remote.client.wait_for_room_s:
                raise
        # Out here nothing holds what was taken before there was no more.
        if taken is None:
            taken = self._patience.allocated(self._take, x, alphas, copy)
        offset, block, self._target, factors, extra = taken
        # Where x lies in the arena it is the tensor itself that must live on.
        self._held = x if block is None else block
        self._submission: Optional[Tuple[Any, ...]] = (
            (self._held, self._target, factors),
            FORWARD,
            flags,
            remote.number,
            remote.dtype_code,
            0,
            number,
            (offset, in_bytes, self._target.offset, out_bytes, 0, 0, 0, 0, 0, 0, 0, 0),
            dims,
            extra,
        )
        self._begin()

    def _begin(self) -> None:
        assert self._submission is not None
        self._sequence = sequence = self.lane.begin(*self._submission)
        # Into a list: an attribute of a module is set through a search of its tables.
        self.layer._published[0] = self.lane, sequence

    def __del__(self) -> None:
        if self._sequence >= 0:
            self.lane.abandon(self._sequence, self.remote.number)

    def _take(self, x: torch.Tensor, alphas: Sequence[torch.Tensor], copy: bool) -> Taken:
        """What it needs of the arena."""
        client = self.remote.client
        in_bytes, out_bytes = self._bytes
        factors, extra = self._give(alphas) if alphas or self.again else (None, _NO_EXTRA)
        offset, block = copied(client, x, in_bytes) if copy else in_arena(client, x, in_bytes)
        return offset, block, client._allocate(out_bytes), factors, extra

    def _give(self, alphas: Sequence[torch.Tensor]) -> Tuple[Block, Extra]:
        """The block of the blend factors that are given, and what the submission says of it."""
        values = given(self.layer, self.remote.seeds, alphas)
        for index, alpha in (self.again or {}).items():
            values[index] = alpha
        client = self.remote.client
        block = client._allocate(values.nbytes)
        client._array(block, values.dtype, values.shape)[...] = values
        return block, (block.offset, values.nbytes, 0, 0)

    @property
    def _patience(self) -> Room:
        if self._room is None:
            self._room = Room(self.remote.client.wait_for_room_s)
        return self._room

    @property
    def x_lies_there(self) -> bool:
        """Whether the daemon reads x itself, and not a copy, again in the backward."""
        return self.ticket is not None and isinstance(self.ticket.held, torch.Tensor)

    @property
    def is_h(self) -> bool:
        """Whether y is the host's output, bit for bit: no seed has gone into it."""
        return not self.hosted and self.completion.blend_weight == 0.0

    @property
    def needs_h(self) -> bool:
        """Whether the backward needs the host's output."""
        if self.hosted or self.ticket is None or not (self.layer.blend == "multiply" or self._takes_from_h):
            return False
        return any(ran.blends for ran in self.live())

    @property
    def _takes_from_h(self) -> bool:
        """Whether a blend factor that rises takes from the host's output: in a convex blend that is not clamped."""
        if self.hosted or not self.want & WANT_GRAD_ALPHAS:
            return False
        return self.layer.blend == "convex" and self.completion.alpha_total <= 1.0

    def finished(self) -> bool:
        """Whether the daemon is done. Never waits."""
        return self._sequence < 0 or self.lane.finished(self._sequence)

    def until_room(self) -> Optional[float]:
        """How long to wait before ``begin_again``, in seconds, where the daemon is done and had no room for the pass,
        and that is waited out."""
        return self._patience.pause(self.refusal())

    def refusal(self) -> Optional[str]:
        """The code by which the daemon has refused it, as far as that has come."""
        return self.lane.refusal(self._sequence) if self._sequence >= 0 else None

    def begin_again(self) -> None:
        """Publishes it anew, after a refusal."""
        self.lane.abandon(self._sequence, self.remote.number)
        self._sequence = -1
        self._begin()

    def complete(self, deadline: Optional[float] = None) -> Completion:
        """Waits for the daemon. Raises its refusal, or ``TimeoutError`` and the pass goes on."""
        if self.completion is None:
            layer = self.layer
            while True:
                try:
                    completion = self.lane.finish(self._sequence, self.remote.number, deadline)
                except SessionError as refusal:
                    self._sequence = -1
                    self._patience.wait(refusal, deadline)
                    self._begin()
                except BaseException as error:
                    if deadline is None or not isinstance(error, TimeoutError):
                        self._sequence = -1
                    raise
                else:
                    break
            try:
                self._sequence, self._submission = -1, None
                if completion.ticket:
                    self.ticket = Ticket(self.remote, completion.ticket, self._held)
            except BaseException:  # a signal's handler's
                if completion.ticket and self.ticket is None:
                    self.lane.release(self.remote.number, completion.ticket)
                raise
            self._held = None
            self.live_mask, self.completion = completion.live_mask, completion
            # First, because a failure has the daemon asked, which has counted this pass already.
            if layer._moving:
                # The daemon counts no step of a schedule where the blend factor was given, which is the repetition's.
                layer._note_moving(completion.live_mask, self.train and not self.again)
            if completion.failed_mask or layer._failures:
                layer._note_failures(failures_of(completion))
        return self.completion

    def settle(self, h: Optional[torch.Tensor]) -> torch.Tensor:
        """y, of the host's output and what the daemon computed. Once. It may be ``h`` itself."""
        completion = self.completion or self.complete()
        layer, client = self.layer, self.remote.client
        target, self._target = self._target, None
        if h is not None and self.is_h:
            return h
        out = owning_tensor(client, target, getattr(torch, self.remote.dtype) if h is None else h.dtype, self._output)
        if h is not None and layer.blend == "multiply":
            self.factor = out.clone() if client._heap.crowded else out
            return h * self.factor
        if h is not None:
            weight = 1.0 - completion.blend_weight if layer.blend == "convex" else 1.0
            if weight > 0.0:
                out.add_(h, alpha=weight)
        return out.clone() if client._heap.crowded else out

    def grad_h(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the host's output."""
        if self.layer.blend == "residual" or self.is_h:
            return grad
        return grad * (self.factor if self.layer.blend == "multiply" else 1.0 - self.completion.blend_weight)

    def live(self) -> List[Ran]:
        """Those that ran."""
        live_mask = self.live_mask
        return [ran for ran in self.ran if live_mask >> ran.slot & 1]

    def backward(self, grad: torch.Tensor, h: Optional[torch.Tensor]) -> Gradients:
        """Runs the daemon's backward, once, of the gradient of y. ``h`` where ``needs_h``."""
        # Of a connection that is gone, if the daemon has come back since: it says so.
        layer, remote, want = self.layer, self.remote, self.want
        client, live = remote.client, self.live()
        x_bytes, grad_bytes = self._bytes
        straight = straight_held = None
        extra = _NO_EXTRA
        if layer.blend == "multiply" and h is not None:
            # What is multiplied has another gradient than y, which is what seeds in training learn by.
            if any(not ran.blends for ran in live):
                straight, straight_held = in_arena(client, grad, grad_bytes)
                extra = (0, 0, straight, grad_bytes)
            grad = grad * h
        offset, held = in_arena(client, grad, grad_bytes)
        to_x = to_parameters = to_alphas = None
        x_at = parameters_at = alphas_at = parameter_bytes = alpha_bytes = 0
        if want & WANT_GRAD_INPUT:
            to_x = client._allocate(x_bytes)
            x_at = to_x.offset
        else:
            x_bytes = 0
        if want & WANT_GRAD_PARAMETERS:
            parameter_bytes = sum([ran.grafted.gradient_bytes for ran in live])
            to_parameters = client._allocate(parameter_bytes)
            parameters_at = to_parameters.offset
        if want & WANT_GRAD_ALPHAS:
            alpha_bytes = remote.seeds * 4
            to_alphas = client._allocate(alpha_bytes)
            alphas_at = to_alphas.offset
        places = (0, 0, 0, 0, offset, grad_bytes, x_at, x_bytes, parameters_at, parameter_bytes, alphas_at, alpha_bytes)
        blocks = held, straight_held, grad, to_x, to_parameters, to_alphas
        self._spend(want, places, extra, blocks)
        blocks = held = straight_held = None  # the gradients may go now
        crowded = client._heap.crowded
        grad_x = block = None
        if to_x is not None:
            grad_x = owning_tensor(client, to_x, grad.dtype, self.shape)
            grad_x = grad_x.clone() if crowded else grad_x
        if to_parameters is not None and parameter_bytes:
            block = owning_tensor(client, to_parameters, torch.float32, (parameter_bytes // 4,))
            block = block.clone() if crowded else block
        alphas: List[float] = []
        if to_alphas is not None:
            alphas = self._alphas(client._array(to_alphas, np.float32, (remote.seeds,)).tolist(), grad, h, live)
        return Gradients(grad_x, block, alphas)

    def _spend(self, want: int, places: Tuple[int, ...], extra: Tuple[int, ...], blocks: Any) -> None:
        """Has the daemon run the backward."""
        completion = self.ticket.run_backward(want, places, extra, blocks)
        if completion.failed_mask:
            self.layer._note_failures(failures_of(completion))

    def _alphas(
        self, parts: List[float], grad: torch.Tensor, h: Optional[torch.Tensor], live: List[Ran]
    ) -> List[float]:
        """The gradients of the blend factors, of the daemon's part of them."""
        taken = 0.0
        if self._takes_from_h and h is not None:
            taken = float(torch.dot(h.reshape(-1).float(), grad.reshape(-1).float()))
        blended = {ran.slot for ran in live if ran.blends}
        for ran in live:
            if ran.blends:
                ran.seed.alpha_grad = parts[ran.slot] - taken
        return [parts[index] - taken if index in blended else 0.0 for index in self.learnt]


def part(block: torch.Tensor, offset: int, entry: Entry) -> torch.Tensor:
    """One parameter's gradient, as a view of the block of all."""
    if entry.dtype == "float32":
        return block.as_strided(entry.shape, entry.strides, block.storage_offset() + offset // 4)
    raw = block.view(torch.uint8)[offset : offset + entry.nbytes]
    return raw.view(getattr(torch, entry.dtype)).view(entry.shape)


def share_out(passed: Pass, block: torch.Tensor, needs: Sequence[bool]) -> List[Optional[torch.Tensor]]:
    """The gradients of the parameters of those that may run, in order, where they are needed."""
    parts: List[Optional[torch.Tensor]] = []
    start = 0
    for ran in passed.ran:
        entries = ran.grafted.parameters
        if not passed.live_mask >> ran.slot & 1:
            parts += [None] * len(entries)
            continue
        for entry in entries:
            parts.append(part(block, start + entry.offset, entry) if needs[len(parts)] else None)
        start += ran.grafted.gradient_bytes
    return parts
