"""A host module with seeds."""

from __future__ import annotations

import warnings
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

import torch
from torch import nn
from torch.nn.modules import module as _module

from .._layer import Layer
from .._session import Client
from ..errors import ConnectionLost, KasminaError, SeedFailureWarning, SessionError, UsageError
from ._function import run
from ._seed import Seed

_BLENDS = ("convex", "residual", "multiply")


class SeededLayer(nn.Module):
    """``host`` with ``seeds`` slots into which kernels are grafted while training runs.

    ``blend`` says how the kernels' outputs meet the host's: ``convex`` (1 - A) h + sum w k(x), ``residual``
    h + sum alpha k(x), ``multiply`` h prod (1 + alpha tanh(k(x) - x)).

    Without a live seed (a kernel and alpha above 0) calling it is calling the host. If a seed fails in a pass
    it is left out of that pass, ``last_failures`` names it and a ``SeedFailureWarning`` is given once. If the
    daemon dies, a pass under way raises ``ConnectionLost``; from then on the layer is its host alone.
    It is that too while the daemon shuts down, and passes that were run before can still have their backward.
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
        #: The layer in the daemon.
        self.remote: Layer = client.open_layer(name, seeds, blend, input_shape, str(dtype).split(".")[-1])
        self.seeds = nn.ModuleList(Seed(self, index) for index in range(seeds))
        if input_shape is not None:
            self.input_shape = tuple(int(size) for size in input_shape)

    @property
    def connected(self) -> bool:
        """Whether the daemon is there, as far as this process has noticed."""
        return self.client.connected

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
        if self._loading:
            self._finish_grafts()
        h = self._host(x, *args, **kwargs)
        if not self._live:
            return h
        if not self.client.connected:
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
        seeds = list(self._modules["seeds"]) if "seeds" in self._modules else []
        self._grafted = [seed for seed in seeds if seed._grafted is not None]
        self._live = [seed for seed in self._grafted if seed._alpha > 0.0]
        self._loading = [seed for seed in seeds if seed._loading is not None]
        self._quiet = not self._live and not self._loading and self._input_shape is not None

    def _finish_grafts(self) -> None:
        """Takes over kernels that have become ready. Waits for none."""
        try:
            for seed in self._loading:
                seed._finish()
        except ConnectionLost:
            self._go_on_alone()

    def _go_on_alone(self, why: str = "is gone") -> None:
        self._live, self._loading = [], []
        self._quiet = True
        if ("lost",) not in self._warned:
            self._warned.add(("lost",))  # type: ignore[arg-type]
            warnings.warn(
                f"layer {self.name!r} goes on without its seeds: the daemon {why}", RuntimeWarning, stacklevel=4
            )

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
