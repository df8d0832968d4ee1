"""The operator's questions, on the control socket."""

from __future__ import annotations

import socket
from typing import Any, Dict, Iterable

from . import _frames
from .errors import SessionError, from_reply

DEFAULT_CONTROL_SOCKET = "/run/kasmina/control.sock"


class Operator:
    """A connection to the daemon's control socket. Replies are plain dictionaries, as ``docs/wire.md`` has
    them."""

    def __init__(self, path: str = DEFAULT_CONTROL_SOCKET) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise SessionError(f"cannot connect to {path}: {error}", code="session.unavailable") from error

    def ask(self, verb: str, **fields: Any) -> Dict[str, Any]:
        """Any verb."""
        _frames.send(self._socket, _frames.encode(_frames.REQUEST, {"verb": verb, **fields}))
        reply, descriptors = _frames.receive(self._socket)
        _frames.close_all(descriptors)
        if "ok" in reply:
            return reply["ok"]
        raise from_reply(reply.get("error", {}))

    def status(self) -> Dict[str, Any]:
        """How the daemon does."""
        return self.ask("status")

    def seeds(self) -> Dict[str, Any]:
        """Every seed of every session."""
        return self.ask("seeds")

    def cache(self) -> Dict[str, Any]:
        """What is resident and how the tiers did."""
        return self.ask("cache")

    def evict(self, kernel: str, *, fleet: bool = False) -> Dict[str, Any]:
        """Drops one kernel from memory and the tiers unless a seed uses it; with ``fleet`` on every node."""
        return self.ask("evict", kernel=kernel, fleet=fleet)

    def clear(self, *, tiers: bool = False) -> Dict[str, Any]:
        """Drops every kernel from memory that no seed uses, and with ``tiers`` empties the tiers too."""
        return self.ask("clear", tiers=tiers)

    def warm(self, kernels: Iterable[str]) -> Dict[str, Any]:
        """Begins to load kernels, and says how far that and earlier warming is."""
        return self.ask("warm", kernels=list(kernels))

    def pin(self, kernel: str) -> None:
        """Loads a kernel and keeps it in memory until it is unpinned or the daemon ends."""
        self.ask("pin", kernel=kernel)

    def unpin(self, kernel: str) -> None:
        """Lets a pinned kernel go again."""
        self.ask("unpin", kernel=kernel)

    def why(self, subject: str) -> Dict[str, Any]:
        """All that is known of a kernel, or of the kernel of a seed, written ``session/layer/seed``."""
        return self.ask("why", subject=subject)

    def validate(self, path: str) -> Dict[str, Any]:
        """Judges a file that the daemon can read."""
        return self.ask("validate", path=path)

    def shutdown(self) -> None:
        """Drains and ends the daemon."""
        self.ask("shutdown")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
