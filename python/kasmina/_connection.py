"""One connection to one daemon: control socket, arena and lane. It ends once and is never made whole again."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import threading
import weakref
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

import numpy as np

from . import _frames
from ._cuda import DeviceMemory, Gpu, Signals, number_of
from ._heap import Block, Heap
from ._lane import GONE, Lane
from ._layer import Layer
from ._layout import ARENA_MAGIC, HEADER_WORDS, PROTOCOL, RING_ENTRIES
from ._offers import Offers
from ._version import __version__
from .errors import ArenaFull, ConnectionLost, SessionError, UsageError, from_reply

_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
_F_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 2)

#: How long a session on a GPU that is closed waits for what is under way, and how long, where it was cut off, the daemon
#: may still be at something.
_CLOSING_S, _GRACE_S = 10.0, 5.0

_CLOSED = "the session was closed"

_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()


class Connection:
    """A session with a daemon. Threads may share it. What was made on it (layers, tickets, blocks of its arena)
    is of no use on another; its memory stays mapped as long as anything looks at it."""

    def __init__(
        self,
        path: str,
        arena_bytes: int,
        offers: Optional[Offers] = None,
        wait_for_room_s: float = 0.0,
        device: Any = None,
    ) -> None:
        #: Where tensors lie, or None where that is the host's memory.
        self.gpu: Optional[Gpu] = None if device is None else Gpu.of(number_of(device))
        #: How long a forward waits where the daemon has no room for it.
        self.wait_for_room_s = wait_for_room_s
        self._offers = offers or Offers()
        self._lock = threading.Lock()
        self._forked = False
        self._closings: Deque[int] = deque()
        self._unread = 0
        #: Whether people were told that it is lost, and that it came after one that was.
        self.told_lost = self.told_back = False
        self.ends: Optional[Ends] = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                self._socket.connect(path)
            except OSError as error:
                raise SessionError(
                    f"cannot connect to {path}: {error}; is kasminad running, and may this user connect?",
                    code="session.unavailable",
                ) from error
            greeting = {
                "verb": "hello",
                "protocol": PROTOCOL,
                "client": f"kasmina-python/{__version__}",
                "pid": os.getpid(),
                "arena_bytes": arena_bytes,
            }
            if self.gpu is not None:
                greeting["gpu"] = self.gpu.uuid
            hello, descriptors = self._ask(greeting)
            doorbell = None
            try:
                expected = ["an arena", "a doorbell", *([] if self.gpu is None else ["a GPU's memory"])]
                if len(descriptors) != len(expected):
                    raise SessionError(
                        f"{', '.join(expected)} were expected beside the greeting's reply, {len(descriptors)} descriptors "
                        "came: install matching versions of client and daemon",
                        code="session.protocol",
                    )
                self._memory = map_sealed(descriptors[0], hello["arena"]["arena_bytes"])
                if self.gpu is not None:
                    self._device_memory = DeviceMemory(self.gpu, descriptors[2], self.device_bytes_of(hello))
                doorbell = socket.socket(fileno=os.dup(descriptors[1]))
            finally:
                _frames.close_all(descriptors)
        except BaseException:
            self._socket.close()
            raise
        self.ends = Ends(self._socket, doorbell)
        self.session: int = hello["session"]
        self.server: str = hello["server"]
        self.device: str = hello["device"]
        self.limits: Dict[str, int] = hello["limits"]
        arena = hello["arena"]
        if int.from_bytes(self._memory[:8], "little") != ARENA_MAGIC:
            raise SessionError("the arena's layout is not known here", code="session.protocol")
        self._heap = Heap(arena["heap_offset"], arena["heap_bytes"], self._how_to_get_more(arena_bytes))
        self._bytes = np.frombuffer(self._memory, np.uint8)
        #: Where tensors' memory begins, and how long it is.
        self._base, self._extent = self._bytes.ctypes.data, len(self._memory)
        signals = None
        if self.gpu is not None:
            signals = self._signals(self.gpu)
            self._base, self._extent = self._device_memory.address, self._device_memory.size
        self._lane = Lane(self._memory, doorbell, arena, hello["spin_us"], signals)
        if signals is not None:
            self._watch(signals)
        #: Tensors over blocks, kept by kasmina.torch.
        self._views: Dict[Any, Any] = {}
        _connections.add(self)

    def _signals(self, gpu: Gpu) -> Signals:
        # It is for PyTorch's tensors alone, whose streams PyTorch knows.
        from .torch import _gpu

        number, start = gpu.number, self._bytes.ctypes.data
        return Signals(
            gpu, self._memory, start, HEADER_WORDS, RING_ENTRIES, lambda: _gpu.current_stream(number)
        )

    def _watch(self, signals: Signals) -> None:
        assert self.ends is not None
        told, tell = os.pipe()
        #: How whoever watches over streams is told that nobody has this any more, and in which process.
        self._left = os.getpid(), tell
        parts = self.ends, self._lane, signals, told
        threading.Thread(target=_give_up_with, args=parts, name="kasmina-signals", daemon=True).start()

    @staticmethod
    def device_bytes_of(reply: Any) -> int:
        """How much memory of a GPU came beside a reply."""
        count = reply.get("device_bytes")
        if not isinstance(count, int):
            raise SessionError(
                "the daemon does not say how much of the GPU's memory it shares: install matching versions of client "
                "and daemon",
                code="session.protocol",
            )
        return count

    def refuse_gpu(self, what: str) -> None:
        """Raises ``UsageError`` where tensors do not lie in the host's memory."""
        if self.gpu is not None:
            raise UsageError(
                f"{what} as NumPy arrays lie in the host's memory, and this session was opened for tensors on "
                f"cuda:{self.gpu.number}: use kasmina.torch, or connect without device="
            )

    def __del__(self) -> None:
        # Whoever watches over the sockets holds them, and not this.
        ends = getattr(self, "ends", None)
        if ends is None:
            return
        left = getattr(self, "_left", None)
        if left is None:
            ends.end()
            return
        try:
            # Streams may wait for what is under way, when nobody else has the session any more.
            if left[0] == os.getpid():
                os.write(left[1], b"\1")
        except OSError:
            pass  # it has ended before
        finally:
            os.close(left[1])

    def _how_to_get_more(self, asked: int) -> str:
        most = self.limits["max_arena_bytes"]
        if asked < most:
            return f"connect with a larger arena_bytes, of which the daemon gives {most} at most"
        return (
            f"use a smaller batch: arena_bytes={asked} was asked for, and the daemon gives {most} at most "
            "(data_plane.arena_bytes)"
        )

    @property
    def connected(self) -> bool:
        """Whether the session is open, as far as this side has noticed."""
        return self._lane.alive

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the one that connected."""
        return self._forked

    def refuse_fork(self) -> None:
        """Raises what a forked process is told."""
        raise UsageError(
            "this process was forked from the one that connected and shares its memory: call kasmina.connect again "
            "here, and make the layers anew"
        )

    def open_layer(self, **spec: Any) -> Layer:
        """Opens a layer, by the fields of the wire's ``open_layer``."""
        return Layer(self, self.request("open_layer", **spec)["layer"], spec)

    def offer(self, artifact: bytes) -> str:
        """Has the daemon judge an artifact and keep its kernel in memory; the kernel's name, to graft it by."""
        block = self._allocate(len(artifact))
        self._array(block, np.uint8, (len(artifact),))[...] = np.frombuffer(artifact, np.uint8)
        return self.request("offer", offset=block.offset, bytes=len(artifact))["kernel"]

    def offer_again(self, kernel: str) -> bool:
        """Offers what was offered before, to this daemon or to another; false if it is not kept."""
        artifact = self._offers.get(kernel)
        if artifact is not None:
            self.offer(artifact)
        return artifact is not None

    def end(self, reason: str) -> None:
        """Ends the session, and so whatever waits for it."""
        self._lane.close(reason)
        self.ends.end()

    def request(self, verb: str, **fields: Any) -> Any:
        """Asks on the control connection. Raises what the daemon refuses."""
        reply, descriptors = self.request_with_descriptors(verb, **fields)
        _frames.close_all(descriptors)
        return reply

    def request_with_descriptors(self, verb: str, **fields: Any) -> Tuple[Any, List[int]]:
        """The same, with the file descriptors beside the reply, which are the caller's to close."""
        with self._lock:
            self._post_closings()
            return self._ask({"verb": verb, **fields})

    def request_if_free(self, verb: str, **fields: Any) -> Optional[Tuple[Any, List[int]]]:
        """The same, unless another thread is waiting for a reply: then None, at once."""
        if not self._lock.acquire(False):
            return None
        try:
            self._post_closings()
            return self._ask({"verb": verb, **fields})
        finally:
            self._lock.release()

    def _ask(self, message: Dict[str, Any]) -> Tuple[Any, List[int]]:
        if self.forked:
            self.refuse_fork()
        if self.ends is not None and not self._lane.alive:
            raise ConnectionLost(self._lane.lost or _CLOSED, in_flight=False)
        frame = _frames.encode(_frames.REQUEST, message)
        try:
            try:
                _frames.send(self._socket, frame)
            except ConnectionLost:
                # Who is not let in is told why before the connection is closed, which may be before it has spoken.
                if self.ends is not None:
                    raise
            while self._unread:
                _, unasked = _frames.receive(self._socket)
                _frames.close_all(unasked)
                self._unread -= 1
            reply, descriptors = _frames.receive(self._socket)
        except ConnectionLost as lost:
            self._end_here(lost.message)
            raise
        except BaseException:
            # Of a signal's handler: the reply to this request would be taken for the next one's.
            self._end_here("the session was interrupted in the middle of a request")
            raise
        if isinstance(reply, dict) and "ok" in reply:
            return reply["ok"], descriptors
        _frames.close_all(descriptors)
        raise from_reply(reply.get("error", {}) if isinstance(reply, dict) else {})

    def _end_here(self, reason: str) -> None:
        if self.ends is None:
            self._socket.close()  # it was not greeted yet
        else:
            self.end(reason)

    def _close_layer(self, layer: int) -> None:
        """Closes a layer now or later. Never blocks and never raises: finalizers call it, at any moment."""
        self._closings.append(layer)
        if self._lock.acquire(False):
            try:
                self._post_closings()
            finally:
                self._lock.release()

    def _post_closings(self) -> None:
        """Sends what finalizers have queued; the replies are read before the next request's."""
        while self._closings and not self._forked:
            layer = self._closings.popleft()
            frame = _frames.encode(_frames.REQUEST, {"verb": "close_layer", "layer": layer})
            # Counted first: what a signal's handler raises comes when it has been sent.
            self._unread += 1
            try:
                # A frame this small is taken whole or not at all.
                self._socket.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except TimeoutError:
                raise  # a signal's handler's
            except OSError:
                self._unread -= 1
                self._closings.appendleft(layer)
                return  # its buffer is full, or the daemon is gone and its layers with it

    def _allocate(self, count: int) -> Block:
        while True:
            try:
                return self._heap.allocate(count)
            except ArenaFull as full:
                # Passes on a GPU are under way that nobody waits for, and hold what they read.
                if self.gpu is None or full.never or not self._lane.wait_for_oldest():
                    raise

    def drain(self) -> None:
        """Before it ends: waits for what streams wait for."""
        if self.gpu is not None:
            self._lane.drain(_CLOSING_S)

    def _array(self, block: Block, dtype: Any, shape: Tuple[int, ...]) -> np.ndarray:
        """A block as an array. The block must be kept alive beside it."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return self._bytes[block.offset : block.offset + count].view(dtype).reshape(shape)

    def _owning_array(self, block: Block, dtype: Any, shape: Tuple[int, ...]) -> np.ndarray:
        """A block's first elements as an array that holds the block as long as anything looks at it."""
        # Not a view of another array: NumPy would have a view of the view look at the first alone.
        array = _Owning(shape, dtype, self._memory, block.offset)
        array.block = block
        return array


class _Owning(np.ndarray):
    """An array over a block, which it holds."""

    __slots__ = ("block",)

    block: Block


class Ends:
    """A session's two sockets. Closed when nobody holds this any more, so that no thread that waits at one of
    them ever finds another file under its number."""

    def __init__(self, control: socket.socket, doorbell: socket.socket) -> None:
        self.control = control
        self.doorbell = doorbell

    def end(self) -> None:
        """Wakes whoever waits at them, here and in the daemon."""
        for end in (self.control, self.doorbell):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was first

    def close(self) -> None:
        self.control.close()
        self.doorbell.close()

    def __del__(self) -> None:
        self.close()


def _give_up_with(ends: Ends, lane: Lane, signals: Signals, told: int) -> None:
    """Ends a session that nobody has any more, when what is under way is done; lets streams go on that wait for a daemon
    that is gone."""
    poll = select.poll()
    poll.register(ends.doorbell, GONE)
    poll.register(told, select.POLLIN)
    if any(found == told for found, _ in poll.poll()):
        lane.drain(_CLOSING_S)
        lane.close(_CLOSED)
        ends.end()
    # First, so that nobody publishes what nobody will do.
    lane.close("the daemon is gone")
    signals.give_up(0.0 if lane.peer_ended else _GRACE_S)
    os.close(told)


def map_sealed(descriptor: int, size: int) -> mmap.mmap:
    """Maps a memory file that nobody can shrink under our feet. Raises ``SessionError`` for any other."""
    try:
        seals = fcntl.fcntl(descriptor, _F_GET_SEALS)
    except OSError as error:
        raise SessionError(f"the daemon sent no memory file: {error}", code="session.protocol") from error
    if not seals & _F_SEAL_SHRINK or os.fstat(descriptor).st_size != size:
        raise SessionError("the daemon sent a memory file that is not sealed or not as long as it said",
                           code="session.protocol")
    return mmap.mmap(descriptor, size)


def _after_fork() -> None:
    """In the child: let go of the sockets, so that the parent's death does not go unnoticed."""
    for connection in list(_connections):
        connection._forked = True
        connection._lock = threading.Lock()
        signals = connection._lane.signals if connection.ends is not None else None
        if signals is not None:
            signals.after_fork()
        if connection.ends is not None:
            connection.ends.close()


os.register_at_fork(after_in_child=_after_fork)
