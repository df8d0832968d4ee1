"""A host module with seeds."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import torch
from torch import nn
from torch.nn.modules import module as _module

from .._connection import Connection
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
from ._function import run
from ._return import Return
from ._seed import Seed

_BLENDS = ("convex", "residual", "multiply")


class SeededLayer(nn.Module):
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
        self._live: List[Seed] = []
        self._grafted: List[Seed] = []
        self._loading: List[Seed] = []
        # Whether a call is the host's own and nothing is to be learned from it.
        self._quiet = False
        # Whether the daemon is gone or leaving, what comes from the next one, and whether to look at it.
        self._alone = False
        self._return: Optional[Return] = None
        self._arrived = False
        self.host = host
        self.client = client
        self.name = name
        self.blend = blend
        self.alpha_gradients = alpha_gradients
        self.dtype = dtype
        #: The seeds that failed in the most recent pass, with the code of the failure.
        self.last_failures: Dict[int, str] = {}
        self._warned: Set[Tuple[int, str]] = set()
        self._random = torch.empty((), dtype=torch.int64)
        self.seeds = nn.ModuleList(Seed(self, index) for index in range(seeds))
        #: The layer in the daemon; after the daemon's return another.
        self.remote: Layer = None  # type: ignore[assignment]
        # First, so that a daemon that dies between the two finds the layer on its list.
        client.restore(self)
        self.remote = client.open_layer(name, seeds, blend, input_shape, str(dtype).split(".")[-1])
        if input_shape is not None:
            self.input_shape = tuple(int(size) for size in input_shape)

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
        self._check(x, h)
        try:
            return run(self, x, h)
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

    def extra_repr(self) -> str:
        return f"name={self.name!r}, blend={self.blend!r}, connected={self.connected}"

    def __deepcopy__(self, memo: Any) -> Any:
        raise UsageError("a SeededLayer cannot be copied, it is one session's: copy the host or use state_dict()")

    def _refresh(self) -> None:
        """Settles what the next calls do, after a seed or the connection changed."""
        seeds = list(self._modules["seeds"]) if "seeds" in self._modules and not self._alone else []
        self._grafted = [seed for seed in seeds if seed.present]
        self._live = [seed for seed in self._grafted if seed._alpha > 0.0]
        self._loading = [s for s in seeds if s._loading is not None and s.index in self.remote.begun]
        self._quiet = not self._live and not self._loading and self._input_shape is not None
        # The client's thread may have shown something meanwhile.
        if self._arrived:
            self._quiet = False

    def _finish_grafts(self) -> None:
        """Takes over kernels that have become ready. Waits for none."""
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
        if x.dtype is not self.dtype or h.dtype is not self.dtype:
            raise UsageError(
                f"layer {self.name!r} was made for {self.dtype}; its input is of {x.dtype} and its host's output "
                f"of {h.dtype}: cast them, or make the layer with dtype="
            )
        if x.device.type != "cpu" or h.device.type != "cpu":
            raise UsageError(
                f"the daemon runs layer {self.name!r} on {self.client.device}; its input is on {x.device} and "
                f"its host's output on {h.device}"
            )

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
        try:
            state = self.remote.seed_state(index)["state"]
        except KasminaError:
            return
        if state in ("error_recovery", "dormant"):
            seed = self.seeds[index]
            if seed._alpha:
                seed._alpha = 0.0
                self._refresh()
