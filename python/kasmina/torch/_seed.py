"""A seed as a module: its parameters and buffers are tensors over memory shared with the daemon."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch
from torch import nn

from .._layer import Entry, Grafted, Layer, check_alpha
from .._life import Schedule
from ..errors import ConnectionLost, KasminaError, KernelError, SeedFailureWarning, UsageError
from ._life import Living, Way, Wish

if TYPE_CHECKING:
    from ._layer import SeededLayer
    from ._return import Arrival


class _Shared(nn.Module):
    """A module whose tensors must stay where they are: the daemon reads them there."""

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        for child in self.children():
            child._apply(fn)
        with torch.no_grad():
            for tensor in [*self._parameters.values(), *self._buffers.values()]:
                if tensor is None:
                    continue
                # Taken first: a function may move the storage under the tensor itself.
                place = tensor.data_ptr()
                moved = fn(tensor.detach())
                if moved.data_ptr() != place or moved.dtype != tensor.dtype:
                    raise UsageError(
                        "the parameters of a grafted kernel lie in memory shared with the daemon and can be "
                        "neither moved nor cast: move the model before grafting, or prune the seed first"
                    )
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_parameters", {}).get(name) is not None:
            _refuse_to_replace(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._parameters:
            _refuse_to_replace(name)
        super().__delattr__(name)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        # assign=True would put other tensors in place of the shared ones.
        metadata = {**(local_metadata or {}), "assign_to_params_buffers": False}
        if not self.__dict__.get("_refused"):
            super()._load_from_state_dict(state_dict, prefix, metadata, *rest)

    def __deepcopy__(self, memo: Any) -> Any:
        raise UsageError(
            "a grafted seed cannot be copied, its parameters are shared with the daemon: use state_dict()"
        )


def _refuse_to_replace(name: str) -> None:
    raise UsageError(
        f"{name} is a parameter of a grafted kernel and lies in memory shared with the daemon: something would put "
        "another tensor in its place, which the daemon would never see. Wrappers that shard, flatten or "
        "reparametrise modules, such as FSDP, must leave the layer's seeds out"
    )


class Seed(Living, _Shared):
    """One slot of a layer. Its parameters are those of the kernel grafted into it, under their own names."""

    #: What belongs to the seed even where a parameter of its kernel has the same name.
    _OWN = frozenset(
        {"alpha", "alpha_grad", "index", "load_error", "_alpha", "_fossil", "_grafted", "_left", "_loading", "_look_at",
         "_refused", "_returns", "_tensors", "_way"}
    )

    def __init__(self, layer: SeededLayer, index: int) -> None:
        super().__init__()
        # Not a child module: the layer holds its seeds, not the other way round.
        object.__setattr__(self, "_layer", layer)
        self.index = index
        self._alpha = 0.0
        self._way = self._fossil = self._returns = None
        self._look_at = 0.0
        self._grafted: Optional[Grafted] = None
        self._tensors: List[nn.Parameter] = []
        # What a checkpoint says of a kernel that did not come back with the daemon, whose weights are here still.
        self._left: Optional[Dict[str, Any]] = None
        #: Whether its kernel could not be grafted from a checkpoint, which says so once and not for each tensor.
        self._refused = False
        #: A graft that nobody waits for: the kernel, its blend factor, how that goes on, and whom to tell.
        self._loading: Optional[Tuple[str, float, Optional[Schedule], Optional[Callable[[Seed], Any]]]] = None
        #: Why the latest graft with ``wait=False`` failed.
        self.load_error: Optional[KasminaError] = None
        #: The gradient of alpha after a backward, if the layer was made with ``alpha_gradients=True``.
        self.alpha_grad: Optional[float] = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def graft(
        self,
        kernel: str,
        alpha: float = 0.0,
        input_shape: Optional[Iterable[int]] = None,
        *,
        schedule: Optional[Schedule] = None,
        wait: bool = True,
        on_live: Optional[Callable[[Seed], Any]] = None,
    ) -> Seed:
        """Puts a kernel into this seed; returns when it is live.

        ``input_shape`` is without the batch; by default the one the layer has seen. Raises ``KernelError``,
        ``OriginError`` or ``SessionError`` and leaves the seed as it was. With a ``schedule`` the blend factor goes on
        from ``alpha`` as training does.

        With ``wait=False`` it returns at once and the kernel is fetched, proven and planned while training goes
        on. The first call of the layer that finds it ready runs it, after ``on_live(seed)``, where an optimizer
        may be given the seed's parameters. A failure is warned of and kept in ``load_error``.
        """
        layer = self._layer
        check_alpha(alpha)
        if input_shape is not None:
            layer.input_shape = tuple(int(size) for size in input_shape)
        if layer.input_shape is None:
            raise UsageError(
                "the input's shape is not known yet: run the layer once, or give input_shape",
                layer=layer.remote.number,
                seed=self.index,
                kernel=str(kernel),
            )
        self.load_error = None
        layer._settle_submitted()
        with layer._owning(self.index):
            if not wait:
                layer.remote.begin_graft(self.index, kernel, layer.input_shape)
                self._loading = (str(kernel), float(alpha), schedule, on_live)
            else:
                grafted = layer.remote.graft(self.index, kernel, 0.0, layer.input_shape)
                self._loading = None
        if wait:
            self._settle(grafted, alpha, schedule, on_live)
        else:
            layer._refresh()
        return self

    def _record(self) -> Optional[Dict[str, Any]]:
        """What a checkpoint says of this seed, beside its tensors."""
        if self._grafted is None:
            return self._left
        frozen = [
            entry.name
            for entry, tensor in zip(self._grafted.parameters, self._tensors)
            if entry.requires_grad and not tensor.requires_grad
        ]
        alpha, way, fossil = self._wish()
        record: Dict[str, Any] = {"kernel": self._grafted.kernel, "alpha": alpha, "frozen": frozen}
        if way is not None:
            record["way"] = way.record()
        if fossil is not None:
            record["fossil"] = fossil
        return record

    def _follow(self, record: Optional[Dict[str, Any]]) -> None:
        """Brings the seed to where a checkpoint has it; its tensors are loaded afterwards."""
        if record is None:
            if self._grafted is not None:
                self.prune()
            return
        alpha = check_alpha(record["alpha"])
        way = Way.of(record["way"]) if record.get("way") else None
        fossil = record.get("fossil")
        is_anew = self.kernel != record["kernel"] or self._loading is not None
        if is_anew or (self._fossil is not None and self._fossil != fossil):
            self.graft(record["kernel"], alpha)
        elif self._fossil is None and self._wish() != Wish(alpha, None, None):
            self.alpha = alpha
        if fossil is not None and self._fossil is None:
            self.fossilize(fossil)
        elif way is not None:
            self._layer.remote.blend_by(self.index, way.schedule, way.start, way.done)
            self._way, self._alpha = way, way.alpha
            self._layer._refresh()
        for entry, tensor in zip(self._grafted.parameters, self._tensors):  # type: ignore[union-attr]
            if entry.requires_grad:
                tensor.requires_grad_(entry.name not in record["frozen"])

    def _settle(
        self,
        grafted: Grafted,
        alpha: float,
        schedule: Optional[Schedule],
        on_live: Optional[Callable[[Seed], Any]],
    ) -> None:
        self._clear()
        self._register(grafted)
        if schedule is not None:
            self.blend(schedule, alpha)
        else:
            if alpha != 0:
                self._weigh(alpha)
            self._alpha = float(alpha)
        self._layer._refresh()
        self._layer._tell_copies()
        if on_live is not None:
            on_live(self)

    def _finish(self) -> None:
        """Takes over a graft that nobody waited for, if it has ended."""
        if self._loading is None:
            return
        _, alpha, schedule, on_live = self._loading
        try:
            grafted = self._layer.remote.finish_graft(self.index)
        except ConnectionLost:
            raise
        except KasminaError as error:
            self._loading, self.load_error = None, error
            self._layer._refresh()
            warnings.warn(
                f"seed {self.index} of layer {self._layer.name!r} was not grafted: {error}",
                SeedFailureWarning,
                stacklevel=7,
            )
            return
        if grafted is not None:
            self._loading = None
            self._settle(grafted, alpha, schedule, on_live)

    def prune(self, embargo: Optional[float] = None) -> None:
        """Takes the kernel out. Its parameters leave the module; an optimizer may go on holding them. For ``embargo``
        seconds the seed then refuses the kernel; by default as long as the daemon's ``engine.embargo`` says."""
        layer = self._layer
        layer._settle_submitted()
        with layer._owning(self.index):
            try:
                layer.remote.prune(self.index, embargo)
            except ConnectionLost:
                # The kernel is gone with the daemon; that it does not come back is for this side to see to.
                if not layer.client.reconnects:
                    raise
                layer.remote.begun.pop(self.index, None)
        self._loading = None
        self._clear()
        layer._refresh()
        layer._tell_copies()

    @property
    def present(self) -> bool:
        """Whether the seed has a kernel that is in the daemon: it has one and is not present while it is on its way
        back after the daemon's death."""
        return self._grafted is not None and self._grafted.client is self._layer.remote.client

    @property
    def kernel(self) -> Optional[str]:
        """The kernel's name, or None."""
        return self._grafted.kernel if self._grafted is not None else None

    @property
    def loading(self) -> Optional[str]:
        """The kernel that is on its way in by ``graft(…, wait=False)``, or None."""
        return self._loading[0] if self._loading is not None else None

    @property
    def alpha(self) -> float:
        """The blend factor, in [0, 1]: that of the next pass, where a schedule moves it; 0 while the kernel is
        unloaded after failures. Setting it ends a schedule and takes effect with the next pass; while the daemon is
        away, with the first after its return, and while the kernel is unloaded, when it comes back."""
        if self._moves:
            self._look()
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        value = check_alpha(value)
        self._before_change()
        self._weigh(value)
        self._way = None
        if self._returns is None:
            self._alpha = value
        else:
            self._returns = value
        self._layer._refresh()

    @property
    def state(self) -> str:
        """Where the seed stands, as the daemon says: ``dormant``, ``blending``, ``holding`` and so on."""
        return self._layer.remote.seed_state(self.index)["state"]

    def stats(self) -> Dict[str, Any]:
        """The seed's numbers: executions, successes, failures by kind, success_rate, mean_us, p50_us, p99_us,
        asynchronous_passes, synchronous_passes."""
        return self._layer.remote.stats(self.index)

    def series(self, after: int = 0) -> Dict[str, List[float]]:
        """The last training passes, the oldest first: ``step`` (the layer's training forwards, from 1), ``alpha``,
        ``latency_us``. Those after the step ``after``."""
        return self._layer.remote.series(self.index, after)

    def last_error(self) -> Optional[Dict[str, Any]]:
        """The most recent failure: ``code`` and ``message``."""
        return self._layer.remote.last_error(self.index)

    def forward(self, *_: Any) -> Any:
        """A seed does not run by itself: call its layer."""
        raise UsageError("a seed does not run by itself: call its layer")

    def extra_repr(self) -> str:
        return f"{self.index}, kernel={self.kernel!r}, alpha={self._alpha:g}"

    def _register(self, grafted: Grafted) -> None:
        for entry in grafted.parameters:
            tensor = shared_tensor(grafted, entry)
            trains = entry.requires_grad and tensor.is_floating_point()
            parameter = nn.Parameter(tensor, requires_grad=trains)
            owner, name = self._container(entry.name)
            # Straight into the table: a kernel may name a parameter as this class names a property.
            owner._parameters[name] = parameter
            self._tensors.append(parameter)
        for entry in grafted.buffers:
            owner, name = self._container(entry.name)
            owner._buffers[name] = shared_tensor(grafted, entry)
        self._grafted = grafted

    def _weigh(self, alpha: float) -> None:
        try:
            self._layer.remote.set_alpha(self.index, alpha)
        except ConnectionLost:
            # The next daemon is told with the rest.
            if not self._layer.client.reconnects:
                raise

    def _restore(self, remote: Layer) -> Wish:
        """Has the kernel that was grafted anew be as it was, by what is returned. The client's thread calls it."""
        wish = self._wish()
        self._impose(remote)
        return wish

    def _arrive(self, arrival: Arrival) -> bool:
        """Takes over what came of this seed's kernel after the daemon's death; whether it is here again."""
        remote = self._layer.remote
        error, grafted = arrival.error, arrival.grafted
        try:
            if self._grafted is not arrival.before:
                # It was pruned while the daemon was away.
                if grafted is not None:
                    remote.prune(self.index, 0)
                return False
            if grafted is not None:
                self._rebind(grafted)
                self.load_error = None
                if self._wish() != arrival.wish:
                    # What it blended towards ends, whatever comes instead.
                    if arrival.wish is None or arrival.wish.fossil is None:
                        remote.set_alpha(self.index, self._wish().alpha)
                    self._impose(remote)
                if self._returns is not None:
                    self._alpha, self._returns = self._returns, None
                return True
        except ConnectionLost:
            raise
        except KasminaError as failed:
            error = failed
        self.load_error = error
        if not arrival.again:
            # The parameters stay where they are, for whoever wants to save them.
            self._left = self._record()
            self._grafted, self._alpha = None, 0.0
            self._way = self._fossil = self._returns = None
        warnings.warn(
            f"seed {self.index} of layer {self._layer.name!r} is left out after the daemon's return"
            f"{' until its kernel can be had' if arrival.again else ''}: {error}",
            SeedFailureWarning,
            stacklevel=5,
        )
        return False

    def _rebind(self, grafted: Grafted) -> None:
        """Has the same parameters and buffers, with the values they have, lie in another memory file."""
        before = self._grafted
        assert before is not None
        for old, new in ((before.parameters, grafted.parameters), (before.buffers, grafted.buffers)):
            if [entry[:3] for entry in old] != [entry[:3] for entry in new]:
                self._layer.remote.prune(self.index, 0)
                raise KernelError(
                    f"kernel {grafted.kernel} has come back with other parameters or buffers than it had",
                    code="kernel.shape",
                    seed=self.index,
                    kernel=grafted.kernel,
                )
        with torch.inference_mode(False), torch.no_grad():
            tensors = list(zip(self._tensors, grafted.parameters))
            for entry in grafted.buffers:
                owner, name = self._container(entry.name)
                tensors.append((owner._buffers[name], entry))
            for tensor, entry in tensors:
                place = shared_tensor(grafted, entry)
                place.copy_(tensor)
                tensor.data = place
        self._grafted = grafted

    def _container(self, dotted: str) -> Any:
        *path, name = dotted.split(".")
        owner: nn.Module = self
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                child = owner._modules[part] = _Shared()
                child.train(self.training)
            owner = child
        return owner, name

    def _clear(self) -> None:
        self._parameters.clear()
        self._buffers.clear()
        self._modules.clear()
        self._tensors = []
        self._grafted = self._left = None
        self._way = self._fossil = self._returns = None
        self._alpha = 0.0
        self.alpha_grad = None


def shared_tensor(grafted: Grafted, entry: Entry) -> torch.Tensor:
    """A tensor over the memory a parameter or buffer lies in; keeps that mapped as long as it lives."""
    dtype = getattr(torch, entry.dtype)
    if entry.elements == 0:
        return torch.empty(entry.shape, dtype=dtype)
    # Grafting may happen in inference mode; the parameters are to be trained all the same.
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(grafted.memory, dtype=dtype, count=entry.elements, offset=entry.offset)
        return flat.view(entry.shape)
