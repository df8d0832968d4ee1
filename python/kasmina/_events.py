"""What happens to seeds, layers and sessions, as it happens."""

from __future__ import annotations

import os
import select
import socket
from typing import Any, Dict, Iterator, Optional

from . import _frames
from .errors import ConnectionLost, SessionError, from_reply


def watch(path: Optional[str] = None, *, session: Optional[int] = None) -> Events:
    """Watches what happens from now on: of all sessions of this user, or of one.

    ``path`` is the trainers' socket, by default that of ``connect``; on the operators' socket it is what happens to
    everybody. Raises ``SessionError``: ``session.unavailable`` when nobody answers, ``session.quota`` where too many
    watch already.
    """
    from ._session import DEFAULT_SOCKET

    return Events(path or os.environ.get("KASMINA_SOCKET") or DEFAULT_SOCKET, session)


class Events:
    """Events as dictionaries, by the fields of ``docs/lifecycle.md``. An iterator, which waits for the next one and
    ends with ``close``; a daemon that goes away raises ``ConnectionLost``. Whoever does not keep up is told so by
    ``{"event": "lost", "count": n}``."""

    def __init__(self, path: str, session: Optional[int] = None) -> None:
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                self._socket.connect(path)
            except OSError as error:
                raise SessionError(f"cannot connect to {path}: {error}", code="session.unavailable") from error
            _frames.send(self._socket, _frames.encode(_frames.REQUEST, {"verb": "watch", "session": session}))
            reply, descriptors = _frames.receive(self._socket)
            _frames.close_all(descriptors)
            if "ok" not in reply:
                raise from_reply(reply.get("error", {}))
        except BaseException:
            self._socket.close()
            raise

    def next(self, timeout: Optional[float] = None) -> Optional[Dict[str, Any]]:
        """The next event; None if none comes within ``timeout`` seconds, or after ``close``."""
        if self._closed:
            return None
        if timeout is not None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return None
        try:
            event, descriptors = _frames.receive(self._socket, _frames.EVENT)
        except ConnectionLost:
            if self._closed:
                return None
            raise
        _frames.close_all(descriptors)
        return event

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return self

    def __next__(self) -> Dict[str, Any]:
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Watches no more. Another thread that waits for an event stops waiting."""
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
        self._socket.close()

    def __del__(self) -> None:
        if "_socket" in self.__dict__:
            self._socket.close()
