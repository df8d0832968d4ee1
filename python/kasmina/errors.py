"""One exception class for each family of codes; code, layer, seed and kernel are attributes."""

from __future__ import annotations

from typing import Any, Mapping, Optional


class KasminaError(Exception):
    """Anything that went wrong between this process and the daemon.

    ``code`` is stable and fit for comparison, such as ``kernel.not_found``; the text is for people.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "internal.bug",
        layer: Optional[int] = None,
        seed: Optional[int] = None,
        kernel: Optional[str] = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.layer = layer
        self.seed = seed
        self.kernel = kernel

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (("layer", self.layer), ("seed", self.seed), ("kernel", self.kernel))
            if value is not None
        ]
        return f"{self.code}: {self.message}" + (f" ({', '.join(where)})" if where else "")

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.message, self.code, self.layer, self.seed, self.kernel)


class KernelError(KasminaError):
    """A kernel cannot be had or cannot run: codes ``kernel.*``."""


class OriginError(KasminaError):
    """Where kernels come from does not answer: codes ``origin.*``."""


class SessionError(KasminaError):
    """The session is refused, over, or holds as much as it may: codes ``session.*``, ``shutdown.*``."""


class ConnectionLost(SessionError, ConnectionError):
    """The daemon is gone: code ``session.lost``.

    ``in_flight`` tells whether something was under way that may or may not have happened.
    """

    def __init__(self, message: str, *, in_flight: bool = True, **where: Any) -> None:
        where.setdefault("code", "session.lost")
        super().__init__(message, **where)
        self.in_flight = in_flight


class ArenaFull(SessionError, MemoryError):
    """The shared memory has no room: code ``session.quota``. Connect with a larger ``arena_bytes``."""

    #: Whether there would be none even if all of it were free.
    never = False


class TicketError(KasminaError):
    """A backward without its forward: codes ``ticket.*``."""


class UsageError(KasminaError, ValueError):
    """The call itself is wrong: code ``session.usage``."""

    def __init__(self, message: str, **where: Any) -> None:
        where.setdefault("code", "session.usage")
        super().__init__(message, **where)


class ConnectionWarning(RuntimeWarning):
    """The daemon is gone and layers go on without their seeds, or it is back."""


class SeedFailureWarning(RuntimeWarning):
    """A seed failed in a pass and was left out; the pass went on with the rest."""


_FAMILIES = {
    "kernel": KernelError,
    "origin": OriginError,
    "session": SessionError,
    "layer": SessionError,
    "shutdown": SessionError,
    "ticket": TicketError,
    "seed": KernelError,
    "cache": KernelError,
    "daemon": SessionError,
}


def _rebuild(kind: type, message: str, code: str, layer: Any, seed: Any, kernel: Any) -> KasminaError:
    return kind(message, code=code, layer=layer, seed=seed, kernel=kernel)


def from_code(code: str, message: str, **where: Any) -> KasminaError:
    """The exception of a code's family."""
    if code == "session.lost":
        return ConnectionLost(message, code=code, **where)
    kind = _FAMILIES.get(code.partition(".")[0], KasminaError)
    return kind(message, code=code, **where)


def from_reply(error: Mapping[str, Any]) -> KasminaError:
    """The exception that a reply's ``error`` stands for."""
    where = {name: error.get(name) for name in ("layer", "seed", "kernel")}
    return from_code(str(error.get("code", "internal.bug")), str(error.get("message", "")), **where)


def whole(code: str, message: str, is_cut: bool) -> str:
    """A refusal's text from the data path, where few bytes have room: what is missing, and what can be done."""
    text = message.rstrip() + (" …" if is_cut else "")
    if code != "session.quota":
        return text
    key = message.partition(" ")[0]
    return (
        f"{text}: have backwards before more forwards, run what needs no gradient under torch.no_grad(), connect with "
        f"wait_for_room_s= where others make room, or raise {key if '.' in key else 'the limit'} in the daemon's "
        "configuration"
    )
