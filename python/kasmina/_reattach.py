"""Coming back after the daemon's death. A thread of each client notices it, looks for the next daemon and has
what was there restored. No step of the trainer waits for any of it."""

from __future__ import annotations

import logging
import random
import select
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

from ._connection import Connection, Ends
from ._lane import GONE
from .errors import ConnectionLost, KasminaError

if TYPE_CHECKING:
    from ._session import Client

_log = logging.getLogger("kasmina")

#: Between two tries while nobody answers: the first pause, and the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25
#: The longest pause while a daemon answers and refuses.
REFUSED_PAUSE_S = 5.0
#: How long the doorbell of a daemon that is gone may stay open.
LANE_PATIENCE_S = 0.1
_NOBODY = ("session.unavailable", "session.lost", "shutdown.draining")


def watch(client: Client) -> None:
    """Starts the thread. It holds the client only while it connects anew, and ends with it."""
    assert client.connection.ends is not None
    parts = (weakref.ref(client), client._stop, client.connection.ends)
    threading.Thread(target=_run, args=parts, name="kasmina-reattach", daemon=True).start()


def _run(client: "weakref.ref[Client]", stop: threading.Event, ends: Ends) -> None:
    under_way: List[Any] = []
    pause: Optional[float] = None
    while True:
        if not _gone(ends, pause):
            pause = _advance(under_way)
            continue
        under_way.clear()
        if stop.is_set():
            return
        found = _find(client, stop)
        if found is None:
            return
        ends, under_way = found
        # Released here, or this thread would keep a session alive that nobody else wants any more.
        del found
        pause = 0.0


def _gone(ends: Ends, pause: Optional[float]) -> bool:
    """Waits for the other side's end, or as long as ``pause``."""
    poll = select.poll()
    poll.register(ends.control, GONE)
    poll.register(ends.doorbell, GONE)
    return bool(poll.poll(None if pause is None else pause * 1000))


def _wait_for_end(end: socket.socket, patience: float) -> None:
    poll = select.poll()
    poll.register(end, GONE)
    poll.poll(patience * 1000)


def _find(client: "weakref.ref[Client]", stop: threading.Event) -> Optional[Tuple[Ends, List[Any]]]:
    """Waits for a daemon; what is to be restored there. None when nobody wants one any more."""
    lost = time.monotonic()
    there = client()
    if there is None:
        return None
    # Of the two ends one may close a moment before the other, and whether the daemon's lane is at its end decides
    # what becomes of the passes under way.
    assert there.connection.ends is not None
    _wait_for_end(there.connection.ends.doorbell, LANE_PATIENCE_S)
    there.connection.end("the daemon is gone")
    _log.info("the daemon at %s is gone (%s): looking for it", there.path, there.connection._lane.lost)
    del there
    pause, refusal = FIRST_PAUSE_S, ""
    # Not all trainers of a node at once.
    while not stop.wait(pause * random.uniform(0.7, 1.0)):
        there = client()
        if there is None:
            return None
        try:
            connection = there.connect()
        except (KasminaError, OSError) as error:
            code = getattr(error, "code", _NOBODY[0])
            if code not in _NOBODY and str(error) != refusal:
                refusal = str(error)
                _log.warning("the daemon at %s is back and refuses this process: %s", there.path, error)
            pause = min(pause * 2, LONGEST_PAUSE_S if code in _NOBODY else REFUSED_PAUSE_S)
            there = None
            continue
        there.connection = connection
        # Either `close` has seen this connection, or we see that it was called.
        if stop.is_set():
            connection.end("the session was closed")
            return None
        _log.info("the daemon at %s is back after %.2f s", there.path, time.monotonic() - lost)
        assert connection.ends is not None
        return connection.ends, there._restorations(connection)
    return None


def _advance(under_way: List[Any]) -> Optional[float]:
    """Has each restoration go on; how long until the next time, or None when all are done."""
    pause: Optional[float] = None
    for each in list(under_way):
        try:
            wants = each.advance()
        except ConnectionLost:
            wants = None  # the end of the stream is about to be seen
        except Exception:
            _log.exception("a layer could not be restored")
            wants = None
        if wants is None:
            under_way.remove(each)
        else:
            pause = wants if pause is None else min(pause, wants)
    return pause
