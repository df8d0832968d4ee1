"""A trainer's session, which outlives the daemon: one connection after the other."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from typing import Any, Dict, Iterable, List, Optional, Tuple

from . import _reattach
from ._connection import Connection
from ._cuda import number_of
from ._events import Events
from ._layer import Layer
from ._offers import Offers
from .errors import UsageError

DEFAULT_SOCKET = "/run/kasmina/kasmina.sock"
DEFAULT_ARENA_BYTES = 256 << 20


def connect(
    path: Optional[str] = None,
    *,
    arena_bytes: int = DEFAULT_ARENA_BYTES,
    reconnect: bool = True,
    wait_for_room_s: float = 0.0,
    device: Any = None,
) -> Client:
    """Opens a session at ``path``, by default ``$KASMINA_SOCKET``, else ``/run/kasmina/kasmina.sock``.

    ``arena_bytes`` is how much shared memory to ask for; memory is taken as it is first used. With ``reconnect``
    a thread notices when the daemon is gone, and when it is back opens the layers of ``kasmina.torch`` anew with
    their kernels, blend factors and the values that their parameters have here.

    What forwards leave for their backwards is bounded, by ``engine.max_tickets_per_layer`` and ``limits``. A forward that
    would pass a bound is refused with ``session.quota``; with ``wait_for_room_s`` it is tried again for so many seconds
    before that, while other threads, coroutines or processes have their backwards. A call blocks meanwhile, an
    ``await`` lets the event loop go on. Leave it 0 where all forwards come before all backwards: nobody would make
    room.

    ``device`` says where the tensors of ``kasmina.torch`` lie: in the host's memory, or with ``"cuda"``, ``"cuda:1"`` or
    a ``torch.device`` on the GPU that the daemon computes on. Then the arena and kernels' parameters lie there and are
    mapped here, and no tensor is copied through the host.

    Raises ``SessionError``:
    ``session.unavailable`` when nobody answers, ``session.quota`` and others when the daemon does not want this
    process, ``session.device`` when the GPU's memory cannot be shared with it.
    """
    path = path or os.environ.get("KASMINA_SOCKET") or DEFAULT_SOCKET
    return Client(path, arena_bytes, reconnect, wait_for_room_s, device)


class Client:
    """A session with the daemon. Threads may share it. It ends with ``close`` or with the process."""

    def __init__(
        self,
        path: str,
        arena_bytes: int,
        reconnect: bool = True,
        wait_for_room_s: float = 0.0,
        device: Any = None,
    ) -> None:
        if not 0.0 <= wait_for_room_s < float("inf"):
            raise UsageError(f"wait_for_room_s is {wait_for_room_s}: give a number of seconds, 0 or more")
        if sys.byteorder != "little":
            raise UsageError("shared memory is little endian, this machine is not")
        self.path = path
        self._arena_bytes = arena_bytes
        self._wait_for_room_s = wait_for_room_s
        # By its number: what "cuda" is depends on the thread.
        self._device = None if device is None else f"cuda:{number_of(device)}"
        #: Whether a daemon that is gone is waited for.
        self.reconnects = reconnect
        #: What the daemon has from here, and the next one is to have.
        self._offers = Offers()
        #: The connection; after the daemon's return another.
        self.connection = self.connect()
        self._restored: "weakref.WeakSet[Any]" = weakref.WeakSet()
        self._restored_lock = threading.Lock()
        self._stop = threading.Event()
        if reconnect:
            _reattach.watch(self)

    def connect(self) -> Connection:
        """Another connection, as this session's are."""
        return Connection(self.path, self._arena_bytes, self._offers, self._wait_for_room_s, self._device)

    @property
    def connected(self) -> bool:
        """Whether there is a daemon, as far as this side has noticed."""
        return self.connection.connected

    @property
    def session(self) -> int:
        """The session's number in the daemon."""
        return self.connection.session

    @property
    def server(self) -> str:
        """The daemon's name and version."""
        return self.connection.server

    @property
    def device(self) -> str:
        """Where the daemon runs kernels."""
        return self.connection.device

    @property
    def limits(self) -> Dict[str, int]:
        """What the daemon lets a session hold."""
        return self.connection.limits

    def open_layer(
        self,
        name: str,
        seeds: int = 1,
        blend: str = "convex",
        input_shape: Optional[Iterable[int]] = None,
        dtype: str = "float32",
        *,
        host: bool = False,
        recompute: bool = False,
    ) -> Layer:
        """Opens a layer with dormant seeds. ``input_shape`` is without the batch, if it is known.

        With ``host`` the daemon runs the layer's own transform too: graft it into the slot ``seeds``. With
        ``recompute`` a backward runs its forward again, and nothing is kept in between.
        """
        shape = None if input_shape is None else [int(size) for size in input_shape]
        return self.connection.open_layer(
            name=name,
            seeds=seeds,
            blend=blend,
            input_shape=shape,
            dtype=dtype,
            host=host,
            recompute=recompute,
        )

    def prefetch(self, kernels: Iterable[str]) -> int:
        """Has kernels fetched and proven, so that a later graft finds them resident. Returns how many were
        not."""
        return self.request("prefetch", kernels=list(kernels))["started"]

    def offer(self, artifact: bytes) -> str:
        """Has the daemon judge an artifact of yours, a PT2 or TorchScript archive, and keep its kernel in memory.
        Returns the kernel's name, by which any seed can be given it.

        Nobody else is told of it and no cache below the daemon's memory keeps it. This client does, until
        ``withdraw``, so that the kernel can be grafted again after it had to leave the daemon's memory, and comes
        back with the daemon. Raises ``KernelError`` with the rule that the artifact breaks.
        """
        artifact = bytes(artifact)
        kernel = self.connection.offer(artifact)
        self._offers.keep(kernel, artifact)
        return kernel

    def withdraw(self, kernel: str) -> None:
        """Forgets an artifact of ``offer``. What was grafted of it stays, as long as this daemon lives."""
        self._offers.drop(kernel)

    def empty(self, *size: Any, dtype: Any = None, requires_grad: bool = False) -> Any:
        """A tensor as ``torch.empty`` makes it, in the memory that the daemon reads: a layer of this session that is called
        with it, or is given it as a gradient, copies nothing. On a GPU it lies there.

        It is float32 unless ``dtype`` is another type of layers. What is written to it between a forward and the backward of
        that is found by autograd, as with any tensor. Raises ``ArenaFull``. After the daemon's return it is a tensor like
        others, and copied.
        """
        from .torch import _arena

        return _arena.empty(self.connection, size, dtype, requires_grad)

    def events(self) -> Events:
        """What happens in this session from now on, on a connection of its own: an iterator and a context manager."""
        return Events(self.path, self.session)

    def restore(self, each: Any) -> None:
        """Has ``each._restoration(connection)`` asked for after the daemon's return: what it gives is moved on by
        the client's thread, by ``advance()``, until that returns None."""
        with self._restored_lock:
            self._restored.add(each)

    def _restorations(self, connection: Connection) -> List[Any]:
        with self._restored_lock:
            return [each._restoration(connection) for each in self._restored]

    def close(self) -> None:
        """Ends the session. Tensors that lie in its memory stay valid."""
        self.reconnects = False
        self._stop.set()
        try:
            self.connection.drain()
        finally:
            self.connection.end("the session was closed")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"session {self.session}" if self.connected else "not connected"
        return f"<kasmina.Client {self.path!r}, {state}>"

    def __deepcopy__(self, memo: Any) -> Client:
        return self

    def __reduce__(self) -> Any:
        raise UsageError("a session cannot be pickled: connect again where it is needed")

    def request(self, verb: str, **fields: Any) -> Any:
        """Asks on the control connection. Raises what the daemon refuses."""
        return self.connection.request(verb, **fields)

    def request_with_descriptors(self, verb: str, **fields: Any) -> Tuple[Any, List[int]]:
        """The same, with the file descriptors beside the reply, which are the caller's to close."""
        return self.connection.request_with_descriptors(verb, **fields)
