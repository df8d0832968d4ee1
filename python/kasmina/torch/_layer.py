"""A host module with seeds."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Set, Tuple, Union

import torch
from torch import nn
from torch.nn.modules import module as _module

from .._lane import Lane
from .._layer import Layer
from .._room import Room
from .._session import Client
from ..errors import ArenaFull, ConnectionLost, KasminaError, SeedFailureWarning, SessionError, UsageError
from . import _gpu, _ops
from ._ahead import Outstanding, collect, ignore
from ._alone import elsewhere
from ._alphas import Alphas, value_of
from ._export import Exporting
from ._function import run
from ._future import Pending, own, submit
from ._host import PLACES, Hosted, handing_over
from ._pass import Running
from ._repeat import Repeats
from ._return import Return, Returning
from ._seed import Seed
from ._state import Stateful, check_dtype

_BLENDS = ("convex", "residual", "multiply")


class SeededLayer(Returning, Stateful, Exporting, nn.Module):
    """A module of yours, the host, with ``seeds`` slots into which kernels are grafted while training runs.

    ``blend`` says how the kernels' outputs meet the host's: ``convex`` (1 - A) h + sum w k(x), ``residual``
    h + sum alpha k(x), ``multiply`` h prod (1 + alpha tanh(k(x) - x)).

    ``host`` says where the host runs while a seed is live: in the ``trainer``, or in the ``daemon``, beside the seeds
    and in the same call; its parameters and buffers then lie in memory shared with the daemon. With ``recompute`` a
    backward runs the forward again in the daemon, and nothing is kept in between.

    Without a live seed (a kernel, and an alpha above 0 or learnt, or a kernel in training) calling it is calling the
    host, here. If a seed fails in a pass
    it is left out of that pass, ``last_failures`` names it and a ``SeedFailureWarning`` is given once. If the
    daemon dies, a forward under way is the host's, the backward of a forward that it has run raises
    ``ConnectionLost``, and until it is back the layer is its host alone. Then the next call runs the seeds again, with the parameters as they are here. It is the host alone too while the
    daemon shuts down, and passes that were run before can still have their backward.
    """

    def __init__(
        self,
        module: nn.Module,
        client: Client,
        name: str = "layer",
        seeds: int = 1,
        blend: str = "convex",
        input_shape: Optional[Iterable[int]] = None,
        alpha_gradients: bool = False,
        dtype: torch.dtype = torch.float32,
        *,
        host: str = "trainer",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if blend not in _BLENDS:
            raise UsageError(f"blend is one of {', '.join(_BLENDS)}, not {blend!r}")
        check_dtype(dtype)
        if host not in PLACES:
            raise UsageError(f"a host runs in the {' or in the '.join(PLACES)}, not in {host!r}")
        self._input_shape: Optional[Tuple[int, ...]] = None
        self.host_place = host
        self.recompute = recompute
        self.host = module
        self.name = name
        self.blend = blend
        self.alpha_gradients = alpha_gradients
        self.dtype = dtype
        self._open(client, seeds, None if input_shape is None else tuple(int(size) for size in input_shape))
        if self._unhosted:
            self._hand_over()

    def _open(self, client: Client, seeds: int, input_shape: Optional[Tuple[int, ...]]) -> None:
        """Opens the layer in the daemon, with dormant seeds, and makes all that belongs to one session."""
        # Of the seeds in the daemon: those that are blended, of these the learnt blend factors, those that learn
        # behind the layer, and all.
        self._live: List[Seed] = []
        self._learnt: List[Tuple[int, nn.Parameter]] = []
        self._learning: List[Seed] = []
        #: Those of which passes change something: on a schedule, or on their way back after failures.
        self._moving: List[Seed] = []
        self._grafted: List[Seed] = []
        #: What may run in a pass, as far as that is known.
        self._running: Optional[Running] = None
        self._loading: List[Seed] = []
        # The host in the daemon, and whether it is to be there and is not.
        self._hosted: Optional[Hosted] = None
        self._unhosted = False
        # Whether a call is the host's own and nothing is to be learned from it.
        self._quiet = False
        # Whether the daemon is gone or leaving, what comes from the next one, and whether to look at it.
        self._alone = False
        self._return: Optional[Return] = None
        self._arrived = False
        self.client = client
        self._failures: Dict[int, str] = {}
        # Passes on a GPU of which nobody has seen yet what became of them, and the tickets of those that were refused.
        self._outstanding: Deque[Outstanding] = deque()
        self._refused: Set[Tuple[Lane, int]] = set()
        weakref.finalize(self, ignore, self._outstanding).atexit = False
        self._warned: Set[Tuple[int, str]] = set()
        # What a pass draws from PyTorch's generator, and the same as an array, which gives the number sooner.
        self._random = torch.zeros((), dtype=torch.int64, device="cpu")
        self._drawn = self._random.numpy()
        self._device_type = _gpu.device_of(client.connection).type
        self._passes = [0, 0]
        self._repeats = Repeats(self.name)
        # The latest pass of submit, and on which lane: what was before it is done when it is.
        self._submitted: Optional[Tuple[Lane, int]] = None
        # The same of all passes, and what whoever publishes one holds, and whoever changes what the next one is.
        self._published: List[Optional[Tuple[Lane, int]]] = [None]
        self._changing = threading.RLock()
        self._handle = _ops.register(self)
        self.alphas = Alphas()
        self.seeds = nn.ModuleList(Seed(self, index) for index in range(seeds))
        #: The layer in the daemon; after the daemon's return another.
        self.remote: Layer = None  # type: ignore[assignment]
        # First, so that a daemon that dies between the two finds the layer on its list.
        client.restore(self)
        self.remote = client.open_layer(
            self.name,
            seeds,
            self.blend,
            input_shape,
            str(self.dtype).split(".")[-1],
            host=self.host_place == "daemon",
            recompute=self.recompute,
        )
        if input_shape is not None:
            self.input_shape = input_shape

    @property
    def last_failures(self) -> Dict[int, str]:
        """The seeds that failed in the most recent pass, with the code of the failure. On a GPU this waits for the passes
        that are under way, and raises what one of them was refused for."""
        if self._outstanding:
            collect(self, waits=True)
        return self._failures

    @property
    def connected(self) -> bool:
        """Whether the layer is in a daemon that is there, as far as this process has noticed."""
        return self.remote.client.connected

    @property
    def input_shape(self) -> Optional[Tuple[int, ...]]:
        """The input's shape without the batch, as given or first seen."""
        return self._input_shape

    @input_shape.setter
    def input_shape(self, shape: Optional[Tuple[int, ...]]) -> None:
        self._input_shape = shape
        self._refresh()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "host":
            # Found without nn.Module's search of its tables: that search is most of what a call may cost.
            object.__setattr__(self, "_host", value)
            if self.__dict__.get("_hosted") is not None:
                self._hosted = None
                self._refresh()

    def add_module(self, name: str, module: Optional[nn.Module]) -> None:
        """As of any module; another host is used from then on."""
        super().add_module(name, module)
        if name == "host":
            self.host = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (
            self._quiet
            and not self._forward_pre_hooks
            and not self._forward_hooks
            and not self._backward_hooks
            and not self._backward_pre_hooks
            and not _module._global_forward_pre_hooks
            and not _module._global_forward_hooks
            and not _module._global_backward_hooks
            and not _module._global_backward_pre_hooks
        ):
            return self._host(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def forward(self, x: torch.Tensor = None, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[assignment]
        """The host's output, blended with the live seeds'. Further arguments are the host's."""
        if x is None:
            raise UsageError(
                f"layer {self.name!r} is called with its input as the first argument, which its kernels are given too, "
                f"not with {', '.join(f'{name}=' for name in kwargs) or 'nothing'}: layer(x, …)"
            )
        if torch.compiler.is_compiling():
            return self._traced(x, *args, **kwargs)
        if self._input_shape is None and isinstance(x, torch.Tensor):
            self.input_shape = tuple(x.shape[1:])
        if self._arrived:
            self._take_over()
        if self._loading:
            self._finish_grafts()
        if self.host_place == "daemon":
            return self._in_daemon(x, *args, **kwargs)
        h = self._host(x, *args, **kwargs)
        if not self._runs():
            return h
        if not self.remote.client.connected:
            self._go_on_alone()
            return h
        if not isinstance(h, torch.Tensor):
            self._refuse_output(h)
        self._passes[0] += 1
        own_x, own_h, dtype = x, h, self.dtype
        if x.dtype is not dtype or h.dtype is not dtype:
            # Under autocast: the seeds compute in the layer's own type.
            own_x, own_h = self._cast(x, h)
        self._check(own_x, own_h)
        try:
            y = run(self, own_x, own_h)
        except SessionError as refused:
            if not self._goes_on(refused):
                raise
            y = own_h
        return y if own_h is h else y.to(h.dtype)

    def _in_daemon(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``forward`` where the daemon runs the host: y comes in one call."""
        own_x = self._for_daemon(x, args, kwargs)
        if own_x is None:
            return self._host(x, *args, **kwargs)
        self._passes[0] += 1
        if not torch.is_autocast_enabled(self._device_type):
            return self._guarded(lambda: self._host(x), lambda: run(self, own_x, None))
        dtype = self._hosted.type_under_autocast(x)  # type: ignore[union-attr]
        return self._guarded(lambda: self._host(x), lambda: run(self, own_x, None)).to(dtype)

    def _for_daemon(self, x: torch.Tensor, args: Any, kwargs: Any) -> Optional[torch.Tensor]:
        """The input for a daemon that runs the host; None where this call is the host's own, here."""
        if self._unhosted and self._input_shape is not None:
            # What is saved for a backward meanwhile is not the caller's, whose checkpoint may count it.
            elsewhere(self._hand_over)
        if not self._runs():
            return None
        if not self.remote.client.connected:
            self._go_on_alone()
            return None
        if args or kwargs:
            raise UsageError(
                f"the daemon runs the host of layer {self.name!r} on one tensor, and it was called with more: make the "
                'layer with host="trainer", whose host takes what you give it'
            )
        own_x = x if x.dtype is self.dtype else self._cast(x, x)[0]
        self._check(own_x, own_x)
        hosted = self._hosted
        assert hosted is not None
        if tuple(x.shape[1:]) != self._input_shape:
            raise UsageError(
                f"the host of layer {self.name!r} was handed to the daemon for inputs of {list(self._input_shape or ())} "
                f"without the batch, and this one is of {list(x.shape[1:])}: make the layer with "
                'host="trainer", whose host takes any'
            )
        with self._changing:
            hosted.settle(self.training)
        return own_x

    def submit(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Pending:
        """Begins a pass and does not wait for it: the host runs here and now, the seeds in the daemon meanwhile.

        Passes of any number of layers may be under way. ``result()`` of what is returned, or awaiting it,
        gives what calling the layer would, recorded for autograd if gradients are enabled now. Hooks of the
        layer do not run.
        """
        begun = self._submit(x, args, kwargs, True)
        assert isinstance(begun, Pending)
        return begun

    def _submit(self, x: torch.Tensor, args: Any, kwargs: Any, waits: bool) -> Union[Pending, Callable[[], Pending]]:
        """``submit``. Without ``waits`` it may give what publishes the pass, or raises ``ArenaFull`` and may be called
        again."""
        if self._input_shape is None:
            self.input_shape = tuple(x.shape[1:])
        if self._arrived:
            self._take_over()
        if self._loading:
            self._finish_grafts()
        self._passes[1] += 1
        cast, own_h = None, None
        if self.host_place == "daemon":
            own_x = self._for_daemon(x, args, kwargs)
            if own_x is None or not x.numel():
                return Pending(self, x, own(self._host(x, *args, **kwargs), x), None)
            if torch.is_autocast_enabled(self._device_type):
                cast = self._hosted.type_under_autocast(x)  # type: ignore[union-attr]
        else:
            h = own_h = own(self._host(x, *args, **kwargs), x)
            runs = self._runs()
            is_empty = isinstance(h, torch.Tensor) and not (x.numel() and h.numel())
            if not runs or not self.remote.client.connected or is_empty:
                if runs and not self.remote.client.connected:
                    self._go_on_alone()
                return Pending(self, x, h, None)
            if not isinstance(h, torch.Tensor):
                self._refuse_output(h)
            cast = None if x.dtype is self.dtype and h.dtype is self.dtype else h.dtype
            own_x, own_h = (x, h) if cast is None else self._cast(x, h)
            self._check(own_x, own_h)

        def publish() -> Pending:
            begun = self._guarded(lambda: None, lambda: submit(self, own_x, own_h, cast, waits))
            if begun is None:
                return Pending(self, x, own(self._host(x, *args, **kwargs), x) if own_h is None else h, None)
            assert begun._started is not None
            self._submitted = begun._started.lane, begun._started._sequence
            return begun

        if waits:
            return publish()
        return publish

    async def forward_async(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Calls the layer; the event loop goes on while the daemon computes."""
        begun = self._submit(x, args, kwargs, False)
        return await (begun if isinstance(begun, Pending) else await self._room_for(begun))

    async def _room_for(self, publish: Callable[[], Pending]) -> Pending:
        """What ``publish`` gives, as soon as the arena has room; the event loop goes on meanwhile."""
        room = Room(self.remote.client.wait_for_room_s)
        while True:
            try:
                return publish()
            except ArenaFull as full:
                pause = room.pause_for(full)
            import asyncio

            await asyncio.sleep(pause)

    def stats(self) -> Dict[str, Any]:
        """How many passes were ``synchronous`` (calls) and ``asynchronous`` (``submit``, ``forward_async``), those
        in which a seed was live, and by seed what the daemon counted."""
        return {
            "synchronous": self._passes[0],
            "asynchronous": self._passes[1],
            "seeds": [seed.stats() for seed in self.seeds],
        }

    def _traced(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``forward`` as a compiler sees it: what may change is asked here, and so guards the compiled code."""
        if self._input_shape is None:
            self._input_shape = tuple(x.shape[1:])
        if self.host_place == "daemon":
            if self._arrived or self._loading or self._unhosted:
                x = _ops.settle(self, x)
            if self._hosted is None or not self._runs():
                return self._host(x, *args, **kwargs)
            return _ops.blend(self, x if x.dtype is self.dtype else self._cast(x, x)[0], None)
        h = self._host(x, *args, **kwargs)
        if self._arrived or self._loading:
            h = _ops.settle(self, h)
        if not self._runs():
            return h
        if x.dtype is self.dtype and h.dtype is self.dtype:
            return _ops.blend(self, x, h)
        own_x, own_h = self._cast(x, h)
        return _ops.blend(self, own_x, own_h).to(h.dtype)

    def _runs(self) -> bool:
        """Whether the daemon has anything to do for a call made now: seeds that are blended run always, those that
        learn behind the layer where something may be learnt."""
        if len(self._live) > len(self._learnt):
            return True
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return bool(self._live) or (bool(self._learning) and self.training and torch.is_grad_enabled())
        # An alpha that is learnt and 0 is as good as none where nothing is learnt.
        return any(value_of(alpha) > 0.0 for _, alpha in self._learnt)

    def _guarded(self, alone: Callable[[], Any], compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives, or ``alone`` where the daemon gives nothing: it is gone, or about to leave."""
        try:
            return compute()
        except SessionError as refused:
            if not self._goes_on(refused):
                raise
            return alone()

    def _goes_on(self, refused: SessionError) -> bool:
        """Whether the host's output is what a call gives after a refusal: the daemon is gone or about to leave, and the layer
        goes on alone."""
        if isinstance(refused, ConnectionLost):
            self._go_on_alone()
            # A host in the daemon may have counted this pass in its running statistics, which lie in shared memory:
            # run here it would count it again.
            hosted = refused.in_flight and self.host_place == "daemon" and self.training
            return not hosted or next(self._host.buffers(), None) is None
        # A daemon that is about to leave has run nothing: the host's output is whole. Tickets taken
        # before can still be spent.
        if refused.code != "shutdown.draining":
            return False
        self._go_on_alone("is shutting down")
        return True

    def _refuse_output(self, h: Any) -> None:
        raise UsageError(
            f"the host of layer {self.name!r}, a {type(self._host).__name__}, returns a {type(h).__name__}, and a kernel's "
            "output is blended with one tensor: wrap the host in a module that returns that alone"
        )

    def _cast(self, x: torch.Tensor, h: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        if not torch.is_autocast_enabled(self._device_type):
            raise UsageError(
                f"layer {self.name!r} was made for {self.dtype}; its input is of {x.dtype} and its host's output "
                f"of {h.dtype}: cast them, run it under torch.autocast, or make the layer with dtype="
            )
        return x.to(self.dtype), h.to(self.dtype)

    def _hand_over(self) -> None:
        """Has the daemon run the host. Raises what is wrong with that."""
        # Of the threads that call a new layer at once, one does it.
        with handing_over:
            if self._input_shape is None or not self._unhosted:
                return
            self._settle_submitted()
            try:
                self._hosted = Hosted(self)
            except ConnectionLost:
                return self._go_on_alone()
            self._refresh()

    def _slot(self, index: int) -> Any:
        """A seed, or the host in the daemon, by its slot."""
        return self._hosted if index == self.remote.host else self.seeds[index]

    def _settle_submitted(self) -> None:
        """Before seeds change: what is under way was published for the seeds as they are."""
        if self._submitted is not None:
            (lane, sequence), self._submitted = self._submitted, None
            lane.wait(sequence)

    def extra_repr(self) -> str:
        where = ", host='daemon'" if self.host_place == "daemon" else ""
        return f"name={self.name!r}, blend={self.blend!r}{where}, connected={self.connected}"

    def _refresh(self) -> None:
        """Settles what the next calls do, after a seed or the connection changed."""
        seeds = list(self._modules["seeds"]) if "seeds" in self._modules and not self._alone else []
        hosted = self._hosted
        self._unhosted = bool(seeds) and self.host_place == "daemon" and hosted is None
        # Where the daemon is to run the host and does not, it runs no seed either.
        is_ready = self.host_place == "trainer" or (hosted is not None and hosted.present)
        self._grafted = [seed for seed in seeds if seed._is_here] if is_ready else []
        self._live = [seed for seed in self._grafted if seed._blends]
        learnt = [(seed.index, seed.alpha_parameter) for seed in self._live]
        self._learnt = [(index, parameter) for index, parameter in learnt if parameter is not None]
        self._learning = [seed for seed in self._grafted if seed._learns]
        self._moving = [seed for seed in self._grafted if seed._moves]
        self._loading = [s for s in seeds if s._loading is not None and s.index in self.remote.begun]
        busy = self._live or self._learning or self._loading or self._unhosted
        self._quiet = not busy and self._input_shape is not None
        # The client's thread may have shown something meanwhile.
        if self._arrived:
            self._quiet = False

    def _finish_grafts(self) -> None:
        """Takes over kernels that have become ready. Waits for none."""
        if self._submitted is not None:
            lane, sequence = self._submitted
            if not lane.finished(sequence):
                return
        with self._changing:
            try:
                for seed in self._loading:
                    seed._finish()
            except ConnectionLost:
                self._go_on_alone()

    def _settle_published(self) -> None:
        """Before a seed's tensors are others, under ``_changing``: calls of other threads are done in the daemon."""
        if self._published[0] is not None:
            (lane, sequence), self._published[0] = self._published[0], None
            lane.wait(sequence)

    def _check(self, x: torch.Tensor, h: torch.Tensor) -> None:
        if x.is_cpu and h.is_cpu and self._device_type == "cpu":
            return
        device = _gpu.device_of(self.client.connection)
        if x.device != device or h.device != device:
            how = f"move both to {device}"
            if x.device == h.device and x.is_cuda:
                how += f', or open the session with kasmina.connect(device="{x.device}")'
            elif x.device == h.device and self.client.connection.gpu is not None:
                how += ", or open the session without device="
            raise UsageError(
                f"the session of layer {self.name!r} takes tensors on {device}; its input is on {x.device} and "
                f"its host's output on {h.device}: {how}"
            )

    def _note_moving(self, live_mask: int, train: bool) -> None:
        """Takes note of a pass for seeds that move."""
        for seed in list(self._moving):
            seed._passed(live_mask, train)

    def _note_failures(self, failures: Dict[int, str]) -> None:
        """Records what failed in a pass; asks the daemon whether it has given a seed up."""
        self._failures = failures
        for index, code in failures.items():
            if (index, code) not in self._warned:
                self._warned.add((index, code))
                warnings.warn(
                    f"seed {index} of layer {self.name!r} failed with {code} and was left out of the pass: "
                    f"{self._reason(index)}",
                    SeedFailureWarning,
                    stacklevel=5,
                )
            self._forget_if_unloaded(index)

    def _reason(self, index: int) -> str:
        try:
            error = self.remote.last_error(index)
        except KasminaError as failed:
            return str(failed)
        return error["message"] if error else "no reason was given"

    def _forget_if_unloaded(self, index: int) -> None:
        seed = self.seeds[index]
        try:
            reply = self.remote.seed_state(index)
        except KasminaError:
            return
        if reply["state"] in ("error_recovery", "loading", "dormant"):
            seed._stands(reply)
            self._refresh()
