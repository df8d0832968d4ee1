"""A layer's way to the daemon that came after its own.

The client's thread opens the layer anew and grafts its kernels again; until all that is there the layer is its host
alone. Its next call then takes over what has arrived: the values that parameters and buffers have here are copied to
where the new daemon reads them, and the same ``nn.Parameter`` objects lie there from then on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, Iterator, NamedTuple, Optional

from torch import nn

from .._connection import Connection
from .._layer import Grafted, Layer
from ..errors import ConnectionLost, ConnectionWarning, KasminaError, OriginError
from ._life import Wish

if TYPE_CHECKING:
    from ._layer import SeededLayer

_log = logging.getLogger("kasmina")

#: How long a layer waits for the last of its kernels before it goes on with those that are there.
PATIENCE_S = 1.0
#: Between two looks whether a kernel is ready.
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.001, 0.02
#: Between two tries to get a kernel whose origin does not answer.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.25, 5.0


class Arrival(NamedTuple):
    """What became of a seed, or of a host in the daemon."""

    seed: Any
    #: What was in it when its daemon died.
    before: Grafted
    #: The same kernel in the new daemon, and how it was told to be there.
    grafted: Optional[Grafted] = None
    wish: Optional[Wish] = None
    #: Why it cannot be had, and whether it is asked for again.
    error: Optional[KasminaError] = None
    again: bool = False


class _Awaited:
    """A seed whose kernel is on its way back."""

    def __init__(self, before: Grafted) -> None:
        self.before = before
        self.is_asked = False
        self.ask_at = 0.0
        self.pause = FIRST_RETRY_S
        #: Whether it was told that it does not come yet.
        self.is_late = False
        #: Whether the seed is being given another kernel.
        self.is_held = False


class Return:
    """Moved on by the client's thread, looked at by the layer."""

    def __init__(self, layer: SeededLayer, connection: Connection) -> None:
        self._layer = weakref.ref(layer)
        self._connection = connection
        self._lock = threading.Lock()
        self._awaited: Dict[int, _Awaited] = {}
        self._begun: Dict[int, Dict[str, Any]] = {}
        self._look = SHORTEST_LOOK_S
        self._since = time.monotonic()
        self._refusal = ""
        self._is_shown = False
        #: The layer in the new daemon.
        self.remote: Optional[Layer] = None
        #: What the layer has not yet taken over.
        self.arrived: Deque[Arrival] = deque()

    def advance(self) -> Optional[float]:
        """Does what can be done now. How long until the next time; None when there is nothing more to do."""
        layer = self._layer()
        if layer is None:
            return None
        if self.remote is None:
            if layer.remote is None:
                return LONGEST_LOOK_S  # it is being made, on one connection or the other
            if layer.remote.client is self._connection:
                return None
            if not self._open(layer):
                return LONGEST_RETRY_S
        for index in list(self._awaited):
            # Not all the while: whoever calls `forget` waits for one short question at most.
            with self._lock:
                awaited = self._awaited.get(index)
                if awaited is not None and self._is_over(index, layer._slot(index), awaited):
                    del self._awaited[index]
        is_settled = all(awaited.is_late or awaited.is_held for awaited in list(self._awaited.values()))
        if is_settled or time.monotonic() - self._since > PATIENCE_S:
            if not self._is_shown or self.arrived:
                self._is_shown = True
                layer._show(self)
        if not self._awaited:
            return None
        self._look = min(self._look * 1.5, LONGEST_LOOK_S)
        return self._look

    def hold(self, index: int) -> None:
        """Leaves a seed alone, until `let_go` or `forget`: its place in the daemon is its owner's."""
        with self._lock:
            if index in self._awaited:
                self._awaited[index].is_held = True

    def let_go(self, index: int) -> None:
        """Goes on with a seed that is as it was after all; what was asked for it may be over."""
        with self._lock:
            if index in self._awaited:
                self._awaited[index].is_held = self._awaited[index].is_asked = False

    def forget(self, index: int) -> None:
        """A seed is not wanted any more as it was."""
        with self._lock:
            self._awaited.pop(index, None)

    def _open(self, layer: SeededLayer) -> bool:
        try:
            self.remote = self._connection.open_layer(**layer.remote.spec)
        except ConnectionLost:
            raise
        except KasminaError as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                _log.warning("layer %r cannot be opened again: %s", layer.name, error)
            return False
        self._begun = dict(layer.remote.begun)
        hosted = layer._hosted
        if hosted is not None:
            self._awaited[hosted.index] = _Awaited(hosted._grafted)
        for seed in layer.seeds:
            if seed._grafted is not None:
                self._awaited[seed.index] = _Awaited(seed._grafted)
            else:
                self._begin_loading(seed.index)
        return True

    def _is_over(self, index: int, seed: Any, awaited: _Awaited) -> bool:
        """Moves one seed on; whether there is nothing more to do for it."""
        before, remote = awaited.before, self.remote
        assert remote is not None
        if awaited.is_held:
            return False
        if seed is None or seed._grafted is not before:
            return True  # pruned, or given another kernel, while the daemon was away
        try:
            if not awaited.is_asked:
                if time.monotonic() < awaited.ask_at:
                    return False
                remote.begin(before.asked)
                awaited.is_asked = True
                self._look = SHORTEST_LOOK_S
            grafted = remote.finish(before.asked)
            if grafted is None:
                return False
            wish = seed._restore(remote)
        except ConnectionLost:
            raise
        except KasminaError as error:
            # An origin that does not answer, or room that others have taken, may be there later.
            again = isinstance(error, OriginError) or error.code in ("session.quota", "kernel.not_offered")
            if not awaited.is_late:
                self.arrived.append(Arrival(seed, before, error=error, again=again))
            awaited.is_late, awaited.is_asked = True, False
            awaited.ask_at = time.monotonic() + awaited.pause
            awaited.pause = min(awaited.pause * 2, LONGEST_RETRY_S)
            return not again
        self.arrived.append(Arrival(seed, before, grafted, wish))
        self._begin_loading(index)
        return True

    def _begin_loading(self, index: int) -> None:
        """Asks again for a kernel that was on its way in when the daemon died."""
        asked, remote = self._begun.get(index), self.remote
        if asked is not None and remote is not None:
            try:
                remote.begin(asked)
            except ConnectionLost:
                raise
            except KasminaError as error:
                _log.warning("kernel %s cannot be loaded again: %s", asked["kernel"], error)
            remote.begun[index] = asked


class Returning(nn.Module):
    """The part of a layer that goes on without the daemon, and takes over what comes back with it."""

    # What SeededLayer has, for the methods here.
    name: str
    remote: Layer
    _alone: bool
    _arrived: bool
    _changing: Any
    _quiet: bool
    _return: Optional[Return]
    _refresh: Any

    def _go_on_alone(self, why: str = "is gone") -> None:
        connection = self.remote.client
        if connection.forked:
            # No daemon is gone: this process must not train the host alone.
            connection.refuse_fork()
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

    @property
    def _there(self) -> Layer:
        """The layer in the daemon that is there now, whether or not a call has taken over what came back: whom to ask."""
        came = self._return
        if came is not None and came.remote is not None and came.remote.client.connected:
            return came.remote
        return self.remote

    def _restoration(self, connection: Connection) -> Return:
        return Return(self, connection)

    def _show(self, came: Return) -> None:
        """Has the next call look at what has come back. The client's thread calls it, at any moment."""
        self._return = came
        self._arrived = True
        self._quiet = False

    def _take_over(self) -> None:
        """Puts what has come back from the daemon's death into its place. Waits for nothing."""
        with self._changing:
            self._put_back()

    def _put_back(self) -> None:
        if not self._arrived:
            return  # another thread has
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
