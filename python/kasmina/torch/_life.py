"""A seed's life as its layer sees it: the daemon moves blend factors and brings kernels back, and this side keeps
count of what its own passes have done, so that it need not ask before each."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional

from torch import nn

from .._layer import Layer, check_alpha
from .._life import Schedule
from ..errors import ConnectionLost, KasminaError, SeedFailureWarning
from ._alphas import value_of

if TYPE_CHECKING:
    from .._layer import Grafted
    from ._layer import SeededLayer

#: How often a layer asks whether a seed that is on its way back has arrived, at most.
LOOK_S = 0.25


class Way:
    """A schedule that a seed follows, and how far it is."""

    __slots__ = ("schedule", "start", "done")

    def __init__(self, schedule: Schedule, start: float, done: int = 0) -> None:
        self.schedule = schedule
        self.start = start
        self.done = done

    @property
    def alpha(self) -> float:
        """The blend factor of the next pass."""
        return self.schedule.alpha(self.start, self.done)

    def record(self) -> Dict[str, Any]:
        """As a checkpoint has it."""
        return {**self.schedule.wire(self.done), "start": self.start}

    @classmethod
    def of(cls, record: Dict[str, Any]) -> Way:
        """From a checkpoint."""
        fields = dict(record)
        start, done = fields.pop("start"), fields.pop("done", 0)
        return cls(Schedule(**fields), check_alpha(start), int(done))


class Wish(NamedTuple):
    """How the trainer wants a seed to be, as far as a daemon has to be told."""

    alpha: float
    way: Optional[Way]
    #: Whether it is a fossil, and then whether it is frozen.
    fossil: Optional[bool]


class Living:
    """The part of a seed that blends, holds, fossilizes, and comes back after failures."""

    # What Seed has, for the methods here.
    index: int
    _alpha: float
    _grafted: Optional[Grafted]
    _layer: SeededLayer
    _role: str
    _unloaded: bool
    alpha_parameter: Optional[nn.Parameter]
    _tensors: List[nn.Parameter]
    #: The schedule that it follows.
    _way: Optional[Way]
    #: Whether it is a fossil, and then whether it is frozen.
    _fossil: Optional[bool]
    #: The blend factor with which it comes back, while its kernel is unloaded after failures.
    _returns: Optional[float]
    _look_at: float

    def blend(self, schedule: Schedule, alpha: Optional[float] = None) -> None:
        """Has the blend factor go by a schedule, one step for each training forward of the layer, from ``alpha`` or
        from where it is (from 0 for a seed in training). The seed then is ``blending``, and ``holding`` at the end.

        Raises ``KernelError`` with ``seed.transition`` where the seed's state does not allow it.
        """
        start = None if alpha is None else check_alpha(alpha)
        self._before_change()
        if start is None and self.alpha_parameter is not None:
            start = value_of(self.alpha_parameter)
        begins = self._alpha if self._role == "blend" else 0.0
        begins = begins if start is None else start
        reply = self._tell("blend_by", schedule, start)
        if reply is not None and schedule.kind != "constant":
            begins = reply["alpha"]
        self._way, self._fossil = Way(schedule, begins), None
        self._alpha = self._way.alpha
        self._layer.alphas.forget(self.index)
        self._takes_part()
        self._layer._refresh()

    def hold(self) -> None:
        """Leaves the blend factor where its schedule has brought it. A seed that holds already stays as it is."""
        self._before_change()
        reply = self._tell("hold")
        if reply is not None:
            self._alpha = reply["alpha"]
        self._way = None
        self._layer._refresh()

    def fossilize(self, freeze: bool = False) -> None:
        """Makes the kernel of a seed that holds part of the layer: its blend factor is 1 from now on, and only a prune
        changes that. With ``freeze`` its parameters are trained no more (``requires_grad`` is False)."""
        self._before_change()
        reply = self._tell("fossilize", freeze)
        self._alpha, self._way, self._fossil = 1.0, None, freeze
        self._layer.alphas.forget(self.index)
        if freeze if reply is None else reply["frozen"]:
            for tensor in self._tensors:
                tensor.requires_grad_(False)
        self._layer._refresh()

    def _takes_part(self) -> None:
        """A seed in training has gone into the blend, with the next daemon too."""
        self._layer._running = None
        self._role = "blend"
        if self._grafted is not None:
            self._grafted.asked["role"] = "blend"

    def _before_change(self) -> None:
        self._layer._settle_submitted()
        if self._layer._arrived:
            self._layer._take_over()

    def _tell(self, verb: str, *arguments: Any) -> Optional[Dict[str, Any]]:
        """Tells the daemon; None where it is away, and the next is told with the rest."""
        try:
            return getattr(self._layer.remote, verb)(self.index, *arguments)
        except ConnectionLost:
            if self._grafted is None or not self._layer.client.reconnects:
                raise
            return None

    # what passes do

    @property
    def _runs(self) -> bool:
        """Whether a pass has to reach the daemon for it."""
        return self._alpha > 0.0 or self._way is not None or self._returns is not None

    @property
    def _blends(self) -> bool:
        """Whether its kernel may go into the layer's output."""
        return self._role == "blend" and not self._unloaded and (self._runs or self.alpha_parameter is not None)

    @property
    def _learns(self) -> bool:
        """Whether its kernel learns behind the layer."""
        return self._role == "train" and not self._unloaded

    @property
    def _moves(self) -> bool:
        """Whether passes change something of it."""
        return self._way is not None or self._returns is not None

    def _passed(self, live_mask: int, train: bool) -> None:
        """Takes note of a pass of the layer."""
        if self._returns is not None:
            if live_mask >> self.index & 1 or time.monotonic() >= self._look_at:
                self._look()
        elif train and self._way is not None:
            self._way.done += 1
            self._alpha = self._way.alpha
            if self._way.done >= self._way.schedule.steps:
                self._look()

    def _look(self) -> None:
        """Asks the daemon where the seed stands, and believes it."""
        try:
            reply = self._layer.remote.seed_state(self.index)
        except KasminaError:
            return
        self._stands(reply)
        self._layer._refresh()

    def _stands(self, reply: Dict[str, Any]) -> None:
        state = reply["state"]
        if state == "error_recovery" or (state == "loading" and reply["kernel"] is None):
            if self._returns is None:
                self._returns, self._alpha = self._alpha, 0.0
            self._look_at = time.monotonic() + LOOK_S
        elif reply["kernel"] is None:
            if self._returns is not None:
                warnings.warn(
                    f"seed {self.index} of layer {self._layer.name!r} is left out from now on: its kernel failed and "
                    "could not be brought back",
                    SeedFailureWarning,
                    stacklevel=7,
                )
            self._returns, self._way, self._alpha, self._unloaded = None, None, 0.0, True
        else:
            self._returns, self._alpha = None, reply["alpha"]
            if self._way is not None:
                left = reply.get("steps_left", 0)
                self._way.done = self._way.schedule.steps - left
                if not left:
                    self._way = None

    # what outlives a daemon

    def _wish(self) -> Wish:
        alpha = self._alpha if self._returns is None else self._returns
        if self.alpha_parameter is not None:
            alpha = value_of(self.alpha_parameter)
        return Wish(alpha, self._way, self._fossil)

    def _impose(self, remote: Layer) -> None:
        """Has a seed that was just grafted be as it is wished to be."""
        alpha, way, fossil = self._wish()
        if fossil is not None:
            remote.fossilize(self.index, fossil)
        elif way is not None and way.done < way.schedule.steps:
            remote.blend_by(self.index, way.schedule, way.start, way.done)
        elif alpha != 0:
            remote.set_alpha(self.index, alpha)
