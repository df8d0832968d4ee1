"""A host module with seeds."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import torch
from torch import nn
from torch.nn.modules import module as _module

from .._connection import Connection
from .._lane import Lane
from .._layer import Layer
from .._session import Client
from ..errors import (
    ConnectionLost,
    ConnectionWarning,
    KasminaError,
    SeedFailureWarning,
    SessionError,
    UsageError,
)
from . import _ops
from ._function import run
from ._future import Pending, submit
from ._return import Return
from ._seed import Seed
from ._state import Stateful

_BLENDS = ("convex", "residual", "multiply")


class SeededLayer(Stateful, nn.Module):
    """``host`` with ``seeds`` slots into which kernels are grafted while training runs.

    ``blend`` says how the kernels' outputs meet the host's: ``convex`` (1 - A) h + sum w k(x), ``residual``
    h + sum alpha k(x), ``multiply`` h prod (1 + alpha tanh(k(x) - x)).

    Without a live seed (a kernel and alpha above 0) calling it is calling the host. If a seed fails in a pass
    it is left out of that pass, ``last_failures`` names it and a ``SeedFailureWarning`` is given once. If the
    daemon dies, a pass under way raises ``ConnectionLost``; until it is back the layer is its host alone. Then
    the next call runs the seeds again, with the parameters as they are here. It is the host alone too while the
    daemon shuts down, and passes that were run before can still have their backward.
    """

    def __init__(
        self,
        host: nn.Module,
        client: Client,
        name: str = "layer",
        seeds: int = 1,
        blend: str = "convex",
        input_shape: Optional[Iterable[int]] = None,
        alpha_gradients: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if blend not in _BLENDS:
            raise UsageError(f"blend is one of {', '.join(_BLENDS)}, not {blend!r}")
        self._input_shape: Optional[Tuple[int, ...]] = None
        self.host = host
        self.name = name
        self.blend = blend
        self.alpha_gradients = alpha_gradients
        self.dtype = dtype
        self._open(client, seeds, None if input_shape is None else tuple(int(size) for size in input_shape))

    def _open(self, client: Client, seeds: int, input_shape: Optional[Tuple[int, ...]]) -> None:
        """Opens the layer in the daemon, with dormant seeds, and makes all that belongs to one session."""
        self._live: List[Seed] = []
        #: Those of which passes change something: on a schedule, or on their way back after failures.
        self._moving: List[Seed] = []
        self._grafted: List[Seed] = []
        self._loading: List[Seed] = []
        # Whether a call is the host's own and nothing is to be learned from it.
        self._quiet = False
        # Whether the daemon is gone or leaving, what comes from the next one, and whether to look at it.
        self._alone = False
        self._return: Optional[Return] = None
        self._arrived = False
        self.client = client
        #: The seeds that failed in the most recent pass, with the code of the failure.
        self.last_failures: Dict[int, str] = {}
        self._warned: Set[Tuple[int, str]] = set()
        self._random = torch.empty((), dtype=torch.int64)
        self._passes = [0, 0]
        # The latest pass of submit, and on which lane: what was before it is done when it is.
        self._submitted: Optional[Tuple[Lane, int]] = None
        self._handle = _ops.register(self)
        self.seeds = nn.ModuleList(Seed(self, index) for index in range(seeds))
        #: The layer in the daemon; after the daemon's return another.
        self.remote: Layer = None  # type: ignore[assignment]
        # First, so that a daemon that dies between the two finds the layer on its list.
        client.restore(self)
        self.remote = client.open_layer(
            self.name, seeds, self.blend, input_shape, str(self.dtype).split(".")[-1]
        )
        if input_shape is not None:
            self.input_shape = input_shape

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

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The host's output, blended with the live seeds'. Further arguments are the host's."""
        if torch.compiler.is_compiling():
            return self._traced(x, *args, **kwargs)
        if self._input_shape is None and isinstance(x, torch.Tensor):
            self.input_shape = tuple(x.shape[1:])
        if self._arrived:
            self._take_over()
        if self._loading:
            self._finish_grafts()
        h = self._host(x, *args, **kwargs)
        if not self._live:
            return h
        if not self.remote.client.connected:
            self._go_on_alone()
            return h
        self._passes[0] += 1
        if x.dtype is self.dtype and h.dtype is self.dtype:
            self._check(x, h)
            return self._guarded(h, lambda: run(self, x, h))
        # Under autocast: the seeds compute in the layer's own type.
        own_x, own_h = self._cast(x, h)
        self._check(own_x, own_h)
        return self._guarded(own_h, lambda: run(self, own_x, own_h)).to(h.dtype)

    def submit(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Pending:
        """Begins a pass and does not wait for it: the host runs here and now, the seeds in the daemon meanwhile.

        Passes of any number of layers may be under way. ``result()`` of what is returned, or awaiting it,
        gives what calling the layer would, recorded for autograd if gradients are enabled now. Hooks of the
        layer do not run.
        """
        if self._input_shape is None:
            self.input_shape = tuple(x.shape[1:])
        if self._arrived:
            self._take_over()
        if self._loading:
            self._finish_grafts()
        h = self._host(x, *args, **kwargs)
        self._passes[1] += 1
        if not self._live or not self.remote.client.connected or not x.numel() or not h.numel():
            if self._live and not self.remote.client.connected:
                self._go_on_alone()
            return Pending(self, x, h, None)
        cast = None if x.dtype is self.dtype and h.dtype is self.dtype else h.dtype
        own_x, own_h = (x, h) if cast is None else self._cast(x, h)
        self._check(own_x, own_h)
        begun: List[Pending] = []
        self._guarded(own_h, lambda: begun.append(submit(self, own_x, own_h, cast)))
        if not begun:
            return Pending(self, x, h, None)
        started = begun[0]._started
        assert started is not None
        self._submitted = started.lane, started._sequence
        return begun[0]

    async def forward_async(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Calls the layer; the event loop goes on while the daemon computes."""
        return await self.submit(x, *args, **kwargs)

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
        h = self._host(x, *args, **kwargs)
        if self._arrived or self._loading:
            h = _ops.settle(self, h)
        if not self._live:
            return h
        if x.dtype is self.dtype and h.dtype is self.dtype:
            return _ops.blend(self, x, h)
        own_x, own_h = self._cast(x, h)
        return _ops.blend(self, own_x, own_h).to(h.dtype)

    def _guarded(self, h: torch.Tensor, compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives, or ``h`` where the daemon has run nothing of it and will not."""
        try:
            return compute()
        except ConnectionLost as lost:
            self._go_on_alone()
            if lost.in_flight:
                raise
            return h
        except SessionError as refused:
            # A daemon that is about to leave has run nothing: the host's output is whole. Tickets taken
            # before can still be spent.
            if refused.code != "shutdown.draining":
                raise
            self._go_on_alone("is shutting down")
            return h

    def _cast(self, x: torch.Tensor, h: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        if not torch.is_autocast_enabled("cpu"):
            raise UsageError(
                f"layer {self.name!r} was made for {self.dtype}; its input is of {x.dtype} and its host's output "
                f"of {h.dtype}: cast them, run it under torch.autocast, or make the layer with dtype="
            )
        return x.to(self.dtype), h.to(self.dtype)

    def _settle_submitted(self) -> None:
        """Before seeds change: what is under way was published for the seeds as they are."""
        if self._submitted is not None:
            (lane, sequence), self._submitted = self._submitted, None
            lane.wait(sequence)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, blend={self.blend!r}, connected={self.connected}"

    def _refresh(self) -> None:
        """Settles what the next calls do, after a seed or the connection changed."""
        seeds = list(self._modules["seeds"]) if "seeds" in self._modules and not self._alone else []
        self._grafted = [seed for seed in seeds if seed.present]
        self._live = [seed for seed in self._grafted if seed._runs]
        self._moving = [seed for seed in self._live if seed._moves]
        self._loading = [s for s in seeds if s._loading is not None and s.index in self.remote.begun]
        self._quiet = not self._live and not self._loading and self._input_shape is not None
        # The client's thread may have shown something meanwhile.
        if self._arrived:
            self._quiet = False

    def _finish_grafts(self) -> None:
        """Takes over kernels that have become ready. Waits for none."""
        if self._submitted is not None:
            lane, sequence = self._submitted
            if not lane.finished(sequence):
                return
        try:
            for seed in self._loading:
                seed._finish()
        except ConnectionLost:
            self._go_on_alone()

    def _go_on_alone(self, why: str = "is gone") -> None:
        connection = self.remote.client
        if why == "is gone" and connection.connected:
            return  # a ticket of before has failed, and the layer has come back meanwhile
        self._alone = True
        self._refresh()
        if not connection.told_lost:
            connection.told_lost = True
            warnings.warn(
                f"the daemon {why}: layer {self.name!r} goes on without its seeds, like every other of its session",
                ConnectionWarning,
                stacklevel=4,
            )

    def _restoration(self, connection: Connection) -> Return:
        return Return(self, connection)

    def _show(self, came: Return) -> None:
        """Has the next call look at what has come back. The client's thread calls it, at any moment."""
        self._return = came
        self._arrived = True
        self._quiet = False

    def _take_over(self) -> None:
        """Puts what has come back from the daemon's death into its place. Waits for nothing."""
        self._arrived = False
        came = self._return
        if came is None or came.remote is None or not came.remote.client.connected:
            return self._refresh()  # gone again
        if self.remote is not came.remote:
            self.remote = came.remote
            self._alone = False
        back = False
        while came.arrived:
            arrival = came.arrived.popleft()
            try:
                back |= arrival.seed._arrive(arrival)
            except ConnectionLost:
                return self._go_on_alone()
        self._refresh()
        if back and not self.remote.client.told_back:
            self.remote.client.told_back = True
            warnings.warn(
                f"the daemon is back: layer {self.name!r} runs its seeds again, and so will every other of its session",
                ConnectionWarning,
                stacklevel=4,
            )

    @contextlib.contextmanager
    def _owning(self, index: int) -> Iterator[None]:
        """While a seed is given another kernel or none. If that succeeds, what was on its way back to it after
        the daemon's death is not wanted any more."""
        if self._arrived:
            self._take_over()
        came = self._return
        if came is None:
            yield
            return
        came.hold(index)
        try:
            yield
        except BaseException:
            came.let_go(index)
            raise
        came.forget(index)

    def _check(self, x: torch.Tensor, h: torch.Tensor) -> None:
        if x.device.type != "cpu" or h.device.type != "cpu":
            raise UsageError(
                f"the daemon runs layer {self.name!r} on {self.client.device}; its input is on {x.device} and "
                f"its host's output on {h.device}"
            )

    def _note_moving(self, live_mask: int, train: bool) -> None:
        """Takes note of a pass for seeds that move."""
        for seed in list(self._moving):
            seed._passed(live_mask, train)

    def _note_failures(self, failures: Dict[int, str]) -> None:
        """Records what failed in a pass; asks the daemon whether it has given a seed up."""
        self.last_failures = failures
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
