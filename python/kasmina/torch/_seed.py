"""A seed as a module: its parameters and buffers are tensors over memory shared with the daemon."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, NamedTuple, Optional

import torch
from torch import nn

from .._layer import Entry, Grafted, Layer, check_alpha
from .._life import Schedule
from ..errors import ConnectionLost, KasminaError, KernelError, SeedFailureWarning, UsageError
from ._alphas import Learning, value_of
from ._life import Living, Way, Wish
from ._shared import Places, Row, Shared, move, shared_tensor

if TYPE_CHECKING:
    from ._layer import SeededLayer
    from ._return import Arrival


class Loading(NamedTuple):
    """How a kernel was asked for."""

    kernel: str
    alpha: float
    role: str
    #: How the blend factor goes on.
    schedule: Optional[Schedule]
    #: Who is told.
    on_live: Optional[Callable[[Seed], Any]]


class Seed(Living, Learning, Shared):
    """One slot of a layer. Its parameters are those of the kernel grafted into it, under their own names."""

    #: What belongs to the seed even where a parameter of its kernel has the same name.
    _OWN = frozenset(
        {"alpha", "alpha_grad", "index", "load_error", "_alpha", "_entries", "_fossil", "_grafted", "_left", "_loading", "_look_at",
         "_places", "_refused", "_returns", "_role", "_tensors", "_unloaded", "_way"}
    )

    def __init__(self, layer: SeededLayer, index: int) -> None:
        super().__init__()
        # Not a child module: the layer holds its seeds, not the other way round.
        object.__setattr__(self, "_layer", layer)
        self.index = index
        self._alpha = 0.0
        #: What its kernel does: ``blend``, or ``train`` behind the layer.
        self._role = "blend"
        #: Whether the daemon has given its kernel up.
        self._unloaded = False
        self._way = self._fossil = self._returns = None
        self._look_at = 0.0
        self._grafted: Optional[Grafted] = None
        self._tensors: List[nn.Parameter] = []
        # Its kernel's parameters and buffers, also after the daemon has given that up.
        self._entries: List[Entry] = []
        self._places: Optional[Places] = None
        # What a checkpoint says of a kernel that did not come back with the daemon, whose weights are here still.
        self._left: Optional[Dict[str, Any]] = None
        #: Whether its kernel could not be grafted from a checkpoint, which says so once and not for each tensor.
        self._refused = False
        #: A graft that nobody waits for.
        self._loading: Optional[Loading] = None
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
        train: bool = False,
        schedule: Optional[Schedule] = None,
        wait: bool = True,
        on_live: Optional[Callable[[Seed], Any]] = None,
    ) -> Seed:
        """Puts a kernel into this seed; returns when it is live.

        ``input_shape`` is without the batch; by default the one the layer has seen. Raises ``KernelError``,
        ``OriginError`` or ``SessionError`` and leaves the seed as it was. With a ``schedule`` the blend factor goes on
        from ``alpha`` as training does.

        With ``train=True`` the kernel learns behind the layer: in training passes it runs as well, y stays what it is
        without it, bit for bit, and its parameters get the gradients that they would have with a blend factor of 1
        and y = h + (k(x) - stop(k(x))). x gets none from it.

        With ``wait=False`` it returns at once and the kernel is fetched, proven and planned while training goes
        on. The first call of the layer that finds it ready runs it, after ``on_live(seed)``, where an optimizer
        may be given the seed's parameters. A failure is warned of and kept in ``load_error``.
        """
        layer = self._layer
        check_alpha(alpha)
        if train and schedule is not None:
            raise UsageError("a kernel that learns behind its layer has no schedule: blend it when it has learnt")
        before = layer.input_shape
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
        role = "train" if train else "blend"
        layer._settle_submitted()
        try:
            with layer._owning(self.index):
                if not wait:
                    layer.remote.begin_graft(self.index, kernel, layer.input_shape, role=role)
                    self._loading = Loading(str(kernel), float(alpha), role, schedule, on_live)
                else:
                    grafted = layer.remote.graft(self.index, kernel, 0.0, layer.input_shape, role=role)
                    self._loading = None
        except BaseException:
            layer.input_shape = before  # a wrong one would spoil the next graft
            raise
        if wait:
            self._settle(grafted, Loading(str(kernel), float(alpha), role, schedule, on_live))
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
        record: Dict[str, Any] = {"kernel": self._grafted.kernel, "alpha": alpha, "frozen": frozen, "role": self._role}
        if self.alpha_parameter is not None:
            record["learnt"] = True
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
        alpha, role = check_alpha(record["alpha"]), record.get("role", "blend")
        way = Way.of(record["way"]) if record.get("way") else None
        fossil = record.get("fossil")
        is_anew = self.kernel != record["kernel"] or self._role != role or self._loading is not None
        is_anew = is_anew or (self._fossil is not None and self._fossil != fossil)
        if is_anew:
            self.graft(record["kernel"], alpha, train=role == "train")
        elif self._fossil is None and self._wish() != Wish(alpha, None, None):
            self.alpha = alpha
        if not record.get("learnt"):
            self.fix_alpha()
        if fossil is not None and self._fossil is None:
            self.fossilize(fossil)
        elif way is not None:
            self._layer.remote.blend_by(self.index, way.schedule, way.start, way.done)
            self._way, self._alpha = way, way.alpha
            self._layer._refresh()
        elif record.get("learnt"):
            self.learn_alpha(alpha)
        # As load_state_dict does of any module, what was here already keeps whether it is trained.
        for entry, tensor in zip(self._grafted.parameters, self._tensors) if is_anew else ():  # type: ignore[union-attr]
            if entry.requires_grad:
                tensor.requires_grad_(entry.name not in record["frozen"])

    def _settle(self, grafted: Grafted, asked: Loading) -> None:
        with self._layer._changing:
            self._layer._settle_published()
            self._clear()
            self._register(grafted)
            self._role = asked.role
            if asked.schedule is not None:
                self.blend(asked.schedule, asked.alpha)
            else:
                if asked.alpha != 0:
                    self._weigh(asked.alpha)
                self._alpha = asked.alpha
            self._layer._refresh()
        self._layer._tell_copies()
        if asked.on_live is not None:
            asked.on_live(self)

    def _finish(self) -> None:
        """Takes over a graft that nobody waited for, if it has ended."""
        if self._loading is None:
            return
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
            asked, self._loading = self._loading, None
            self._settle(grafted, asked)

    def prune(self, embargo: Optional[float] = None) -> None:
        """Takes the kernel out. Its parameters leave the module; an optimizer may go on holding them. For ``embargo``
        seconds the seed then refuses the kernel; by default as long as the daemon's ``engine.embargo`` says."""
        layer = self._layer
        layer._settle_submitted()
        with layer._changing:
            layer._settle_published()
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
        return self._is_here and self._layer.remote.client.connected

    @property
    def _is_here(self) -> bool:
        """The same, as far as its layer has noticed."""
        return self._grafted is not None and self._grafted.client is self._layer.remote.client

    @property
    def kernel(self) -> Optional[str]:
        """The kernel's name, or None."""
        return self._grafted.kernel if self._grafted is not None else None

    @property
    def loading(self) -> Optional[str]:
        """The kernel that is on its way in by ``graft(…, wait=False)``, or None."""
        return self._loading.kernel if self._loading is not None else None

    @property
    def role(self) -> Optional[str]:
        """What its kernel does: ``blend``, or ``train`` behind the layer; None without a kernel."""
        return self._role if self._grafted is not None else None

    @property
    def alpha(self) -> float:
        """The blend factor, in [0, 1]: that of the next pass, where a schedule moves it; 0 while the kernel is
        unloaded after failures. Setting it ends a schedule and takes effect with the next pass; while the daemon is
        away, with the first after its return, and while the kernel is unloaded, when it comes back. One that is learnt
        is the parameter's value, clamped, and setting it sets that."""
        parameter = self.alpha_parameter
        if parameter is not None:
            return value_of(parameter)
        if self._moves:
            self._look()
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        value = check_alpha(value)
        self._before_change()
        self._weigh(value)
        self._way = None
        if self.alpha_parameter is not None:
            self._layer.alphas.learn(self.index, value)
        if self._returns is None:
            self._alpha = value
        else:
            self._returns = value
        self._layer._refresh()

    @property
    def state(self) -> str:
        """Where the seed stands, as the daemon says: ``dormant``, ``blending``, ``holding`` and so on."""
        return self._layer._there.seed_state(self.index)["state"]

    def stats(self) -> Dict[str, Any]:
        """The seed's numbers: executions, successes, failures by kind, success_rate, mean_us, p50_us, p99_us,
        asynchronous_passes, synchronous_passes."""
        return self._layer._there.stats(self.index)

    def series(self, after: int = 0) -> Dict[str, List[Any]]:
        """The last training passes, the oldest first: ``step`` (the layer's training forwards, from 1), ``alpha``,
        ``latency_us``, ``output_norm``, and of one in ``engine.gradient_norm_every`` ``gradient_norm``, of all its
        parameters together; norms that were not measured are None. Those after the step ``after``."""
        return self._layer._there.series(self.index, after)

    def last_error(self) -> Optional[Dict[str, Any]]:
        """The most recent failure: ``code`` and ``message``."""
        return self._layer._there.last_error(self.index)

    def train(self, mode: bool = True) -> Seed:
        """As of any module. A kernel runs in the mode of its layer: one of its own is warned of."""
        layer = self.__dict__.get("_layer")
        if self._grafted is not None and layer is not None and layer.training is not mode:
            warnings.warn(
                f"seed {self.index} of layer {layer.name!r} runs in {'training' if layer.training else 'eval'} mode, as "
                "its layer does, whatever its own is: change the layer's",
                UserWarning,
                stacklevel=3,
            )
        return super().train(mode)

    def forward(self, *_: Any) -> Any:
        """A seed does not run by itself: call its layer."""
        raise UsageError("a seed does not run by itself: call its layer")

    def extra_repr(self) -> str:
        role = ", role='train'" if self.role == "train" else ""
        return f"{self.index}, kernel={self.kernel!r}, alpha={self._wish().alpha:g}{role}"

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
        self._layer._running = None
        self._grafted = grafted
        self._entries = [*grafted.parameters, *grafted.buffers]
        self._places = Places(grafted, self._rows(grafted))

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
                self._unloaded = False
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
        rows = self._rows(grafted)
        move(grafted, [(tensor, entry) for _, _, tensor, entry in rows])
        self._layer._running = None
        self._grafted = grafted
        self._places = Places(grafted, rows)

    def _settle_places(self) -> None:
        """Before a pass: the daemon reads the values that the parameters and buffers have here."""
        places = self._places
        assert places is not None
        if not places.kept():
            assert self._grafted is not None
            self._places = places.brought_back(self._rows(self._grafted))

    def _rows(self, grafted: Grafted) -> List[Row]:
        """The kernel's parameters and buffers, each with its place."""
        rows: List[Row] = []
        for entry, was in zip(grafted.parameters, self._tensors):
            owner, name = self._container(entry.name)
            rows.append((owner._parameters, name, owner._parameters.get(name), entry))
            if rows[-1][2] is not was:
                raise self._amiss(entry.name, "is gone" if rows[-1][2] is None else "is another tensor")
        for entry in grafted.buffers:
            owner, name = self._container(entry.name)
            rows.append((owner._buffers, name, owner._buffers.get(name), entry))
            if rows[-1][2] is None:
                raise self._amiss(entry.name, "is gone")
        for _, _, tensor, entry in rows:
            if tuple(tensor.shape) != entry.shape or str(tensor.dtype) != f"torch.{entry.dtype}":
                raise self._amiss(entry.name, f"is of {list(tensor.shape)}, {str(tensor.dtype)[6:]}")
        return rows

    def _amiss(self, name: str, how: str) -> UsageError:
        return UsageError(
            f"{name} of seed {self.index} of layer {self._layer.name!r} {how}: something has put another tensor in the "
            "place of what was grafted (functional_call, weight_norm, prune, an assignment), which the daemon does not "
            "read. Write into the tensor that was there (copy_) and put that back, or graft the kernel again",
            seed=self.index,
        )

    def _container(self, dotted: str) -> Any:
        *path, name = dotted.split(".")
        owner: nn.Module = self
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                child = owner._modules[part] = Shared()
                child.train(self.training)
            owner = child
        return owner, name

    def _clear(self) -> None:
        self._parameters.clear()
        self._buffers.clear()
        self._modules.clear()
        self._layer._running = None
        self._tensors, self._entries = [], []
        self._places = None
        self._grafted = self._left = None
        self._way = self._fossil = self._returns = None
        self._alpha, self._role, self._unloaded = 0.0, "blend", False
        self.alpha_grad = None
        self._layer.alphas.forget(self.index)
