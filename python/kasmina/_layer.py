"""A layer in the daemon, and passes on NumPy arrays. ``kasmina.torch`` builds on the first half of this."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ._cuda import DeviceMemory, Sequel
from ._export import Exported, exported
from ._heap import Block
from ._lane import Completion
from ._life import Schedule, embargo_ms
from ._layout import (
    BACKWARD,
    DTYPE_CODES,
    DTYPE_SIZES,
    FAILURE_CODES,
    FORWARD,
    MAX_RANK,
    TAKE_TICKET,
    TRAIN,
    WANT_GRAD_ALPHAS,
    WANT_GRAD_INPUT,
    WANT_GRAD_PARAMETERS,
)
from ._room import Room
from .errors import ConnectionLost, KasminaError, KernelError, SessionError, TicketError, UsageError

if TYPE_CHECKING:
    from ._connection import Connection


#: What a kernel does from its graft on.
ROLES = ("blend", "train")


class Entry(NamedTuple):
    """One parameter or buffer of a grafted kernel."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    offset: int
    requires_grad: bool
    #: The other names that it has, where weights are tied.
    aliases: Tuple[str, ...] = ()
    #: Whether a ``state_dict`` has it.
    persistent: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def strides(self) -> Tuple[int, ...]:
        return _strides(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * DTYPE_SIZES[self.dtype]


@lru_cache(maxsize=4096)
def _strides(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


class Grafted:
    """A kernel in a seed: its tables, and its memory, mapped as long as anything looks at it."""

    def __init__(self, reply: Dict[str, Any], memory: Any, asked: Dict[str, Any], client: Connection) -> None:
        #: How it was asked for, but for the layer, and on which connection.
        self.asked = asked
        self.client = client
        self.kernel: str = reply["kernel"]
        self.generation: int = reply["generation"]
        self.gradient_bytes: int = reply["gradient_bytes"]
        self.parameters = _entries(reply["parameters"], reply["memory_bytes"])
        self.buffers = _entries(reply["buffers"], reply["memory_bytes"])
        self.memory = memory

    def array(self, entry: Entry) -> np.ndarray:
        """A parameter's or buffer's elements, shared with the daemon, in a session whose tensors lie in the host's memory."""
        self.client.refuse_gpu("kernels' parameters")
        array = np.frombuffer(self.memory, np.dtype(entry.dtype), entry.elements, entry.offset)
        return array.reshape(entry.shape)


class Layer:
    """A layer opened in the daemon. Closed there when this dies or by ``close``, and gone with its connection."""

    def __init__(self, client: Connection, number: int, spec: Dict[str, Any]) -> None:
        #: The connection it was opened on.
        self.client = client
        self.number = number
        #: How it was asked for.
        self.spec = spec
        self.name: str = spec["name"]
        self.seeds: int = spec["seeds"]
        self.blend: str = spec["blend"]
        self.dtype: str = spec["dtype"]
        self.dtype_code, self.itemsize = DTYPE_CODES[self.dtype], DTYPE_SIZES[self.dtype]
        #: The slot of the layer's own transform, where the daemon runs it.
        self.host: Optional[int] = self.seeds if spec.get("host") else None
        self.grafted: List[Optional[Grafted]] = [None] * (self.seeds + (self.host is not None))
        #: Grafts under way that nobody waits for: by seed, how they were asked for.
        self.begun: Dict[int, Dict[str, Any]] = {}
        self._open = True

    def graft(
        self,
        seed: int,
        kernel: str,
        alpha: float,
        input_shape: Sequence[int],
        dtype: Optional[str] = None,
        role: str = "blend",
        schedule: Optional[Schedule] = None,
    ) -> Grafted:
        """Puts a kernel into a seed; returns when it is live. ``input_shape`` is without the batch. With a schedule the
        blend factor then goes on from ``alpha``.

        With the role ``train`` it learns behind the layer: it runs in training passes alone, and the output is
        the same without it.

        Raises ``KernelError``, ``OriginError`` or ``SessionError`` and leaves the seed as it was.
        """
        asked = self._graft(seed, kernel, input_shape, dtype, role)
        try:
            reply, descriptors = self.client.request_with_descriptors("graft", layer=self.number, **asked)
        except KernelError as error:
            if error.code != "kernel.not_offered" or not self.client.offer_again(asked["kernel"]):
                raise
            reply, descriptors = self.client.request_with_descriptors("graft", layer=self.number, **asked)
        self.begun.pop(seed, None)
        grafted = self._take(asked, reply, descriptors)
        if schedule is not None:
            self.blend_by(seed, schedule, alpha)
        elif alpha != 0 and seed != self.host:
            self.set_alpha(seed, alpha)
        return grafted

    def begin_graft(
        self,
        seed: int,
        kernel: str,
        input_shape: Sequence[int],
        dtype: Optional[str] = None,
        role: str = "blend",
    ) -> None:
        """Begins a graft and returns at once. What runs in the seed goes on until ``finish_graft``."""
        asked = self._graft(seed, kernel, input_shape, dtype, role)
        self.begin(asked)
        self.begun[seed] = asked

    def finish_graft(self, seed: int) -> Optional[Grafted]:
        """Puts the kernel of ``begin_graft`` into its seed, with a blend factor of 0, if it is ready.

        None while it loads, and while another thread waits for the daemon. Raises what ``graft`` would.
        """
        self._check_seed(seed)
        asked = self.begun.get(seed, {"seed": seed})
        try:
            grafted = self.finish(asked)
        except ConnectionLost:
            raise  # another daemon may be asked again
        except KasminaError:
            self.begun.pop(seed, None)
            raise
        if grafted is not None:
            self.begun.pop(seed, None)
        return grafted

    def begin(self, asked: Dict[str, Any]) -> None:
        """``begin_graft`` by the fields of an earlier one, of this layer or of one that was like it."""
        # Where the daemon has it still this costs a copy.
        self.client.offer_again(asked["kernel"])
        self.client.request("begin_graft", layer=self.number, **asked)

    def finish(self, asked: Dict[str, Any]) -> Optional[Grafted]:
        """``finish_graft`` of what was asked by ``begin``."""
        answer = self.client.request_if_free("finish_graft", layer=self.number, seed=asked["seed"])
        if answer is None or answer[0] is None:
            return None
        return self._take(asked, *answer)

    def _graft(
        self, seed: int, kernel: str, input_shape: Sequence[int], dtype: Optional[str], role: str
    ) -> Dict[str, Any]:
        self._check_seed(seed)
        if role not in ROLES:
            raise UsageError(f"a kernel is grafted to {' or to '.join(ROLES)}, not to {role!r}")
        return {
            "seed": seed,
            "kernel": str(kernel),
            # With a weight of 0 at first no pass runs it before its tables are known here.
            "alpha": 0.0,
            "input_shape": [int(size) for size in input_shape],
            "dtype": dtype or self.dtype,
            "role": role,
        }

    def _take(self, asked: Dict[str, Any], reply: Dict[str, Any], descriptors: List[int]) -> Grafted:
        from ._connection import map_sealed
        from ._frames import close_all

        try:
            if len(descriptors) != 1:
                raise SessionError("one memory file was expected beside the reply", code="session.protocol")
            gpu = self.client.gpu
            memory: Any
            if gpu is not None:
                memory = DeviceMemory(gpu, descriptors[0], self.client.device_bytes_of(reply))
            else:
                memory = map_sealed(descriptors[0], reply["memory_bytes"])
            grafted = Grafted(reply, memory, asked, self.client)
        finally:
            close_all(descriptors)
        self.grafted[asked["seed"]] = grafted
        return grafted

    def set_alpha(self, seed: int, alpha: float) -> Dict[str, Any]:
        """Sets a seed's blend factor, in [0, 1], and ends the schedule that it follows."""
        return self._ask("set_alpha", seed, alpha=check_alpha(alpha))

    def blend_by(
        self, seed: int, schedule: Schedule, alpha: Optional[float] = None, done: int = 0
    ) -> Dict[str, Any]:
        """Has a seed's blend factor go by a schedule, from ``alpha`` or from where it is; with ``done`` as if so many
        steps had been done already."""
        start = {} if alpha is None else {"alpha": check_alpha(alpha)}
        return self._ask("blend", seed, schedule=schedule.wire(done), **start)

    def hold(self, seed: int) -> Dict[str, Any]:
        """Leaves a seed's blend factor where its schedule has brought it."""
        return self._ask("hold", seed)

    def fossilize(self, seed: int, freeze: bool = False) -> Dict[str, Any]:
        """Makes the kernel of a seed that holds part of the layer: its blend factor is 1 from now on. Where the reply
        says ``frozen``, the caller trains its parameters no more."""
        return self._ask("fossilize", seed, freeze=freeze)

    def prune(self, seed: int, embargo: Optional[float] = None) -> Dict[str, Any]:
        """Takes a seed's kernel out. Passes whose backward is due finish with it. For ``embargo`` seconds the seed then
        refuses the kernel; by default as long as the daemon's ``engine.embargo`` says."""
        reply = self._ask("prune", seed, **embargo_ms(embargo))
        self.grafted[seed] = None
        self.begun.pop(seed, None)
        return reply

    def seed_state(self, seed: int) -> Dict[str, Any]:
        """``state``, ``alpha``, ``kernel``, ``generation``, ``target``, ``steps_left`` and ``frozen`` of a seed."""
        return self._ask("seed_state", seed)

    def stats(self, seed: int) -> Dict[str, Any]:
        """A seed's numbers: executions, successes, failures by kind, success_rate, mean_us, p50_us, p99_us,
        asynchronous_passes, synchronous_passes."""
        return self._ask("seed_stats", seed)

    def series(self, seed: int, after: int = 0) -> Dict[str, List[Any]]:
        """A seed's last training passes, the oldest first: ``step`` (the layer's training forwards, from 1), ``alpha``,
        ``latency_us``, ``output_norm``, and of one in ``engine.gradient_norm_every`` ``gradient_norm``, of all its
        parameters together; norms that were not measured are None. Those after the step ``after``."""
        return self._ask("seed_series", seed, after=after)

    def last_error(self, seed: int) -> Optional[Dict[str, Any]]:
        """A seed's most recent failure: ``code`` and ``message``."""
        return self._ask("last_error", seed)["error"]

    def export(self, seed: int) -> Exported:
        """The artifact of a seed's kernel, with the parameters and buffers that the seed has now: call it between
        passes. Raises ``KernelError`` where the artifact does not take them, ``SessionError`` with ``seed.no_kernel``
        for a dormant seed, ``ArenaFull``."""
        self._check_seed(seed)
        return exported(self, seed)

    def close(self) -> None:
        """Closes the layer in the daemon."""
        if self._open:
            self._open = False
            self.client._close_layer(self.number)

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.close()

    def forward(
        self,
        x: np.ndarray,
        output_shape: Optional[Iterable[int]] = None,
        *,
        train: bool = False,
        gradients: bool = False,
        rng_seed: Optional[int] = None,
        alphas: Optional[Sequence[float]] = None,
    ) -> Pass:
        """Runs the live seeds on a batch. ``output_shape`` is the host's own output's, by default x's.

        With ``gradients`` a backward may follow, for x, the parameters and the alphas. ``alphas`` are blend
        factors for this pass alone, one for each seed, NaN for the seed's own; a seed with a factor of 0 runs
        then.
        """
        self.client.refuse_gpu("inputs")
        if x.dtype != self.dtype:
            raise UsageError(f"the layer is for {self.dtype}, the array is of {x.dtype}", layer=self.number)
        shape = tuple(x.shape) if output_shape is None else tuple(int(size) for size in output_shape)
        client = self.client
        room = Room(client.wait_for_room_s)
        input_bytes, output_bytes, dims = extents(tuple(x.shape), shape, self.itemsize)
        source, target = room.allocated(lambda: [client._allocate(size) for size in (input_bytes, output_bytes)])
        client._array(source, x.dtype, x.shape)[...] = x
        extra, factors = (0, 0, 0, 0), None
        if alphas is not None:
            given = check_alphas(alphas, self.seeds)
            factors = client._allocate(given.nbytes)
            client._array(factors, given.dtype, given.shape)[...] = given
            extra = (factors.offset, given.nbytes, 0, 0) if given.nbytes else extra
        flags = TRAIN if train else 0
        if gradients:
            flags |= TAKE_TICKET | WANT_GRAD_INPUT | WANT_GRAD_PARAMETERS | WANT_GRAD_ALPHAS
        seed = int.from_bytes(os.urandom(8), "little") if rng_seed is None else rng_seed
        blocks = (source.offset, input_bytes, target.offset, output_bytes) + (0,) * 8
        while True:
            try:
                completion = client._lane.run(
                    FORWARD,
                    flags,
                    self.number,
                    self.dtype_code,
                    0,
                    seed,
                    blocks,
                    dims,
                    extra,
                    (source, target, factors),
                )
                break
            except SessionError as refusal:
                room.wait(refusal)
        return Pass(self, completion, source, tuple(x.shape), client._array(target, x.dtype, shape).copy())

    def _ask(self, verb: str, seed: int, **fields: Any) -> Dict[str, Any]:
        self._check_seed(seed)
        return self.client.request(verb, layer=self.number, seed=seed, **fields)

    def _check_seed(self, seed: int) -> None:
        if not 0 <= seed < len(self.grafted):
            host = "" if self.host is None else f" and its host in slot {self.host}"
            raise UsageError(f"layer {self.name!r} has the seeds 0 to {self.seeds - 1}{host}, not {seed}")


class Ticket:
    """A forward pass awaiting its backward. Given back when this dies."""

    __slots__ = ("layer", "number", "held", "__weakref__")

    def __init__(self, layer: Layer, number: int, held: Any) -> None:
        #: The layer it was taken from, on the connection it was taken on.
        self.layer = layer
        self.number = number
        #: x's memory, which the daemon reads again in the backward.
        self.held = held

    def spend(self) -> int:
        """The ticket's number, once. Raises ``TicketError`` afterwards."""
        number, self.number = self.number, 0
        if not number:
            raise TicketError(
                "this pass has had its backward: run the forward again (retain_graph does not reach the seeds)",
                code="ticket.spent",
                layer=self.layer.number,
            )
        return number

    def run_backward(self, flags: int, places: Tuple[int, ...], extra: Tuple[int, ...], held: Any) -> Completion:
        """Spends the ticket: runs the backward, of the blocks in ``places`` and ``extra``, which ``held`` holds."""
        sequence = self.begin_backward(flags, places, extra, held)
        completion = self.layer.client._lane.finish(sequence, self.layer.number)
        self.held = None
        return completion

    def begin_backward(self, flags: int, places: Tuple[int, ...], extra: Tuple[int, ...], held: Any,
                       sequel: Optional[Sequel] = None) -> int:
        """The same without waiting for it: the sequence, of which ``finish`` must follow."""
        number, lane = self.spend(), self.layer.client._lane
        sequence = -1
        try:
            # The daemon goes on with it where something interrupts this, and so with the forward's memory.
            held = (self.held, held)
            sequence = lane.begin(
                held, BACKWARD, flags, self.layer.number, 0, number, 0, places, extra=extra, sequel=sequel
            )
        finally:
            if sequence < 0:
                lane.release(self.layer.number, number)
        return sequence

    def __del__(self) -> None:
        if self.number:
            self.layer.client._lane.release(self.layer.number, self.number)


class Pass:
    """A forward pass on NumPy arrays."""

    def __init__(
        self, layer: Layer, completion: Completion, source: Block, shape: Tuple[int, ...], output: np.ndarray
    ) -> None:
        self._layer = layer
        self._shape = shape
        #: The seeds that ran.
        self.live = seeds_of(completion.live_mask)
        #: The seeds that failed, with the code of the failure.
        self.failures = failures_of(completion)
        #: A, the total blend weight of the seeds that ran, and T, the sum of their alphas.
        self.blend_weight: float = completion.blend_weight
        self.alpha_total: float = completion.alpha_total
        #: S (convex, residual), P (multiply), or y of a layer whose host the daemon runs.
        self.output = output
        self._grafted = [(seed, layer.grafted[seed]) for seed in self.live]
        self._ticket = None
        if completion.ticket:
            self._ticket = Ticket(layer, completion.ticket, source)

    def backward(self, grad_output: np.ndarray, straight: Optional[np.ndarray] = None) -> Gradients:
        """The gradients of what ``output`` led to. Spends the pass.

        ``straight`` is the gradient of y for seeds in training, by default ``grad_output``. A multiplying
        layer whose host is not in the daemon needs it where such a seed ran: there the two differ.
        """
        if self._ticket is None:
            raise TicketError("the pass was run without gradients=True", code="ticket.unknown")
        for gradient in (grad_output, grad_output if straight is None else straight):
            if gradient.shape != self.output.shape or gradient.dtype != self.output.dtype:
                raise UsageError(f"a gradient of {self.output.shape}, {self.output.dtype} is needed")
        layer, client, dtype = self._layer, self._layer.client, self.output.dtype
        sizes = [(seed, grafted) for seed, grafted in self._grafted if grafted is not None]
        parameter_bytes = sum(grafted.gradient_bytes for _, grafted in sizes)
        input_bytes = math.prod(self._shape) * dtype.itemsize
        blocks = [
            client._allocate(count)
            for count in (grad_output.nbytes, input_bytes, parameter_bytes, layer.seeds * 4)
        ]
        client._array(blocks[0], dtype, grad_output.shape)[...] = grad_output
        places = (0, 0, 0, 0, blocks[0].offset, grad_output.nbytes, blocks[1].offset, input_bytes)
        places += (blocks[2].offset, parameter_bytes, blocks[3].offset, layer.seeds * 4)
        extra = (0, 0, 0, 0)
        if straight is not None:
            blocks.append(client._allocate(straight.nbytes))
            client._array(blocks[4], dtype, straight.shape)[...] = straight
            extra = (0, 0, blocks[4].offset, straight.nbytes)
        flags = WANT_GRAD_INPUT | WANT_GRAD_PARAMETERS | WANT_GRAD_ALPHAS
        self._ticket.run_backward(flags, places, extra, blocks)
        parameters: Dict[int, Dict[str, np.ndarray]] = {}
        gradients = client._array(blocks[2], np.uint8, (parameter_bytes,))
        start = 0
        for seed, grafted in sizes:
            parameters[seed] = {
                entry.name: gradients[start + entry.offset : start + entry.offset + entry.nbytes]
                .view(entry.dtype)
                .reshape(entry.shape)
                .copy()
                for entry in grafted.parameters
                if entry.requires_grad
            }
            start += grafted.gradient_bytes
        return Gradients(
            client._array(blocks[1], dtype, self._shape).copy(),
            parameters,
            client._array(blocks[3], np.float32, (layer.seeds,)).copy(),
        )


class Gradients(NamedTuple):
    """What a backward yields."""

    #: Of x.
    input: np.ndarray
    #: By seed, then by the parameter's name.
    parameters: Dict[int, Dict[str, np.ndarray]]
    #: By seed, the daemon's part: for a convex blend with T at most 1 subtract <h, g>, unless the daemon runs
    #: the host.
    alphas: np.ndarray


def check_alpha(alpha: float) -> float:
    """A blend factor, or ``UsageError``."""
    value = float(alpha)
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"alpha must lie in [0, 1], {alpha} does not")
    return value


def check_alphas(alphas: Sequence[float], seeds: int) -> np.ndarray:
    """Blend factors of a pass, NaN for a seed's own, or ``UsageError``."""
    values = np.asarray(alphas, np.float32)
    if values.shape != (seeds,):
        raise UsageError(f"one alpha for each of {seeds} seeds is needed, not {list(values.shape)}")
    if not np.all(np.isnan(values) | ((values >= 0.0) & (values <= 1.0))):
        raise UsageError(f"alphas must lie in [0, 1] or be NaN, {values.tolist()} do not")
    return values


class Extents(NamedTuple):
    """How much of the arena a pass reads and writes."""

    input_bytes: int
    output_bytes: int
    #: Both ranks and both shapes, as a submission has them.
    dims: Tuple[int, ...]


# A pass asks for what the one before it has asked for.
@lru_cache(maxsize=4096)
def extents(input_shape: Tuple[int, ...], output_shape: Tuple[int, ...], itemsize: int) -> Extents:
    """Those of tensors of two shapes. Raises ``UsageError`` where these do not fit a descriptor."""
    for shape in (input_shape, output_shape):
        if len(shape) > MAX_RANK or any(size >= 1 << 32 for size in shape):
            raise UsageError(f"a tensor of {list(shape)} does not fit a descriptor")
    pad = [(*shape, *(0,) * (MAX_RANK - len(shape))) for shape in (input_shape, output_shape)]
    dims = (len(input_shape), len(output_shape), *pad[0], *pad[1])
    return Extents(math.prod(input_shape) * itemsize, math.prod(output_shape) * itemsize, dims)


def seeds_of(mask: int) -> List[int]:
    """The seeds whose bits are set."""
    return [seed for seed in range(mask.bit_length()) if mask >> seed & 1]


def failures_of(completion: Completion) -> Dict[int, str]:
    """The seeds that failed, with the codes."""
    return {
        seed: FAILURE_CODES.get(completion.seed_status[seed], "kernel.runtime")
        for seed in seeds_of(completion.failed_mask)
    }


def _entries(table: List[Dict[str, Any]], memory_bytes: int) -> List[Entry]:
    entries = []
    for row in table:
        entry = Entry(
            row["name"],
            row["dtype"],
            tuple(row["shape"]),
            row["offset"],
            row["requires_grad"],
            tuple(row.get("aliases", ())),
            row.get("persistent", True),
        )
        if entry.offset + entry.nbytes > memory_bytes:
            raise SessionError(f"{entry.name} does not lie in its memory", code="session.protocol")
        entries.append(entry)
    return entries
