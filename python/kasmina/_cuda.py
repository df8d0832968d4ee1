"""Device memory that the daemon shares, by CUDA's driver: what a trainer needs of it, in the context that PyTorch uses."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import re
import threading
import time
import weakref
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ._layout import PAGE_BYTES
from .errors import ConnectionLost, SessionError, UsageError

#: The driver's library, as the loader finds it.
LIBRARY = "libcuda.so.1"

_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
_READ_AND_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_ON_DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_NO_TIMES = 2  # CU_EVENT_DISABLE_TIMING
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
#: 1 as a float32 in the low half of a word.
_ONE = 0x3F800000
#: How often a word is looked at by whoever gives up, and how long it waits for its own copies.
_NAP_S, _PATIENCE_S = 0.0005, 1.0
#: How much is copied at a time.
_PIECE_BYTES = 1 << 20
#: How often what waits for the device is tried, and after how long again.
_TRIES, _TRY_AGAIN_S = 5, 1.0
_NOT_READY = 600  # CUDA_ERROR_NOT_READY
#: What of a device is needed, by the number of the attribute.
_NEEDED = {102: "virtual memory", 103: "memory shared by file descriptors", 122: "64-bit words written by streams"}

_u64, _int = ctypes.c_uint64, ctypes.c_int


class _Access(ctypes.Structure):
    _fields_ = [("location_type", _int), ("location_id", _int), ("flags", _int)]


_FUNCTIONS: Dict[str, List[Any]] = {
    "cuInit": [ctypes.c_uint],
    "cuDeviceGet": [ctypes.POINTER(_int), _int],
    "cuDeviceGetAttribute": [ctypes.POINTER(_int), _int, _int],
    "cuDeviceGetUuid_v2": [ctypes.c_void_p, _int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(ctypes.c_void_p), _int],
    "cuCtxGetCurrent": [ctypes.POINTER(ctypes.c_void_p)],
    "cuCtxPushCurrent_v2": [ctypes.c_void_p],
    "cuCtxPopCurrent_v2": [ctypes.POINTER(ctypes.c_void_p)],
    "cuCtxSynchronize": [],
    "cuMemImportFromShareableHandle": [ctypes.POINTER(_u64), ctypes.c_void_p, _int],
    "cuMemRelease": [_u64],
    "cuMemAddressReserve": [ctypes.POINTER(_u64), ctypes.c_size_t, ctypes.c_size_t, _u64, ctypes.c_ulonglong],
    "cuMemAddressFree": [_u64, ctypes.c_size_t],
    "cuMemMap": [_u64, ctypes.c_size_t, ctypes.c_size_t, _u64, ctypes.c_ulonglong],
    "cuMemUnmap": [_u64, ctypes.c_size_t],
    "cuMemSetAccess": [_u64, ctypes.c_size_t, ctypes.POINTER(_Access), ctypes.c_size_t],
    "cuMemHostRegister_v2": [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint],
    "cuMemHostUnregister": [ctypes.c_void_p],
    "cuMemHostGetDevicePointer_v2": [ctypes.POINTER(_u64), ctypes.c_void_p, ctypes.c_uint],
    "cuEventCreate": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint],
    "cuEventDestroy_v2": [ctypes.c_void_p],
    "cuEventRecord": [ctypes.c_void_p, ctypes.c_void_p],
    "cuMemcpyHtoDAsync_v2": [_u64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p],
    "cuStreamCreateWithPriority": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint, _int],
    "cuStreamDestroy_v2": [ctypes.c_void_p],
    "cuStreamIsCapturing": [ctypes.c_void_p, ctypes.POINTER(_int)],
    "cuStreamQuery": [ctypes.c_void_p],
    "cuStreamSynchronize": [ctypes.c_void_p],
    "cuStreamWaitEvent": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint],
    "cuStreamWaitValue64_v2": [ctypes.c_void_p, _u64, _u64, ctypes.c_uint],
    "cuStreamWriteValue64_v2": [ctypes.c_void_p, _u64, _u64, ctypes.c_uint],
}


def number_of(device: Any) -> int:
    """The number of a device that is named as PyTorch names it. Raises ``UsageError`` for what is no GPU."""
    found = re.fullmatch(r"cuda(?::(\d+))?", str(device))
    if found is None:
        raise UsageError(f'device is a GPU, "cuda" or "cuda:1", or None for tensors in the host\'s memory, not {device!r}')
    if found[1] is not None:
        return int(found[1])
    import torch

    return torch.cuda.current_device()


class Gpu:
    """A device of this process. Threads may share it."""

    _opened: Dict[int, Gpu] = {}
    _opening = threading.Lock()

    @classmethod
    def of(cls, number: int) -> Gpu:
        """The device of a number, opened once. Raises ``SessionError`` with ``session.device``."""
        with cls._opening:
            found = cls._opened.get(number)
            if found is None:
                found = cls(number)
                if not cls._opened:
                    threading.Thread(target=_do_what_is_left, name="kasmina-gpu", daemon=True).start()
                cls._opened[number] = found
            return found

    def __init__(self, number: int) -> None:
        self.number = number
        try:
            library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise SessionError(f"no CUDA driver is here: {error}", code="session.device") from error
        self._error_string = library.cuGetErrorString
        self._functions: Dict[str, Any] = {}
        for name, arguments in _FUNCTIONS.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise SessionError(
                    f"the CUDA driver is too old, it has no {name}: one of CUDA 12.0 or later is needed", code="session.device"
                ) from error
            function.argtypes, function.restype = arguments, _int
            self._functions[name] = function
        device, context = _int(), ctypes.c_void_p()
        self._ask("cuInit", 0)
        self._ask("cuDeviceGet", ctypes.byref(device), number)
        for attribute, what in _NEEDED.items():
            has = _int()
            self._ask("cuDeviceGetAttribute", ctypes.byref(has), attribute, device)
            if not has.value:
                raise SessionError(
                    f"cuda:{number} or its driver has no {what}, which sharing its memory needs: update the driver, or "
                    "connect without device=",
                    code="session.device",
                )
        uuid = (ctypes.c_ubyte * 16)()
        self._ask("cuDeviceGetUuid_v2", uuid, device)
        #: What tells it from all others, in hexadecimal.
        self.uuid = bytes(uuid).hex()
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self._access = _Access(_ON_DEVICE, device.value, _READ_AND_WRITE)

    def _ask(self, name: str, *arguments: Any, known: Tuple[int, ...] = ()) -> int:
        result: int = self._functions[name](*arguments)
        if result and result not in known:
            words = ctypes.c_char_p()
            self._error_string(result, ctypes.byref(words))
            said = words.value.decode() if words.value else "an unknown error"
            raise SessionError(f"{name} failed on cuda:{self.number}: {said} ({result})", code="session.device")
        return result

    def call(self, name: str, *arguments: Any, known: Tuple[int, ...] = ()) -> int:
        """Calls a function of the driver in the device's context, and leaves the thread's own as it is. Its result: 0, or one
        of those ``known`` to the caller. Raises ``SessionError`` with ``session.device`` for any other."""
        current = ctypes.c_void_p()
        self._ask("cuCtxGetCurrent", ctypes.byref(current))
        if current.value == self._context.value:
            return self._ask(name, *arguments, known=known)
        self._ask("cuCtxPushCurrent_v2", self._context)
        try:
            return self._ask(name, *arguments, known=known)
        finally:
            self._ask("cuCtxPopCurrent_v2", ctypes.byref(current))

    def is_idle(self, stream: Any) -> bool:
        """Whether a stream has done all that it was handed."""
        return self.call("cuStreamQuery", stream, known=(_NOT_READY,)) == 0

    def synchronize(self) -> None:
        """Waits until all that this process has handed to the device is done."""
        self.call("cuCtxSynchronize")

    def map(self, descriptor: int, size: int) -> int:
        """Maps memory that another process shares. Its address."""
        handle, address = _u64(), _u64()
        self.call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(descriptor), _DESCRIPTOR)
        try:
            self.call("cuMemAddressReserve", ctypes.byref(address), size, 0, 0, 0)
            try:
                self.call("cuMemMap", address, size, 0, handle, 0)
                try:
                    self.call("cuMemSetAccess", address, size, ctypes.byref(self._access), 1)
                except BaseException:
                    self.call("cuMemUnmap", address, size)
                    raise
            except BaseException:
                self.call("cuMemAddressFree", address, size)
                raise
        finally:
            # The mapping holds it.
            self.call("cuMemRelease", handle)
        return address.value

    def unmap(self, address: int, size: int) -> None:
        """Ends a mapping, when nothing on the device can still use it. Blocking."""
        self.synchronize()
        self.call("cuMemUnmap", address, size)
        self.call("cuMemAddressFree", address, size)


class DeviceMemory:
    """Memory of the daemon's on a device, mapped here as long as anything looks at it."""

    def __init__(self, gpu: Gpu, descriptor: int, size: int) -> None:
        self.gpu = gpu
        self.size = size
        self.address = gpu.map(descriptor, size)
        self._finalizer = weakref.finalize(self, _leave, os.getpid(), gpu.unmap, self.address, size)
        self._finalizer.atexit = False


class Neutral(NamedTuple):
    """What a submission was to write on the device, and what stands there if nobody does: it changes nothing."""

    address: int
    #: The bytes, repeated ``count`` times.
    pattern: bytes
    count: int


class Sequel(NamedTuple):
    """How streams go on after a submission."""

    writes: List[Neutral]
    #: Where a float32 is to be copied to that says what of the host's output goes into the layer's, or 0.
    rest: int


class Signals:
    """Orders a session's work on the device by words in the arena's header, which streams write and wait for.

    A stream says when what a submission reads is there, and waits until it is done; nobody here waits for either. Should
    the daemon go before, the words are written here, with results that change nothing: no stream waits for ever.

    The streams of a session hand its blocks to each other: one that uses a block waits for all that the others were handed
    until then.
    """

    def __init__(self, gpu: Gpu, memory: Any, start: int, words: Mapping[str, int], count: int,
                 stream: Callable[[], int]) -> None:
        self._gpu = gpu
        self._stream = stream
        self._count = count
        # Mapped as long as this is there.
        self._memory, self._page = memory, start
        self._here = memoryview(memory).cast("Q")
        self._places = dict(words)
        #: Never held while the driver is asked for something: whoever gives up needs it, and the driver may wait for that.
        self._lock = threading.Lock()
        #: The streams that were used, each with an event.
        self._events: Dict[int, Any] = {}
        self._following = threading.Lock()
        #: What submissions that streams wait for are to write.
        self._awaited: Dict[int, List[Neutral]] = {}
        self._is_over = False
        gpu.call("cuMemHostRegister_v2", start, PAGE_BYTES, 0)
        address, aside = _u64(), ctypes.c_void_p()
        try:
            gpu.call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), start, 0)
            gpu.call("cuStreamCreateWithPriority", ctypes.byref(aside), _NON_BLOCKING, 0)
        except BaseException:
            gpu.call("cuMemHostUnregister", start)
            raise
        self._address, self._aside = address.value, aside
        parts = gpu, memory, start, aside, self._events
        self._finalizer = weakref.finalize(self, _leave, os.getpid(), _let_go, *parts)
        self._finalizer.atexit = False

    def _word(self, name: str, sequence: int) -> int:
        return self._places[name] + sequence % self._count

    def follow(self) -> None:
        """Has the present stream wait for all that the session's others were handed so far. Raises ``UsageError`` for a
        stream that captures: what it is handed would be done again and again, and never now."""
        call, stream = self._gpu.call, self._stream()
        captures = _int()
        call("cuStreamIsCapturing", stream, ctypes.byref(captures))
        if captures.value:
            raise UsageError(
                "a layer whose tensors lie on a GPU cannot be captured in a CUDA graph (torch.cuda.graph, "
                'torch.compile(mode="reduce-overhead")): each pass is another submission to the daemon. Leave it out of '
                "what is captured"
            )
        with self._following:
            if stream not in self._events:
                event = ctypes.c_void_p()
                call("cuEventCreate", ctypes.byref(event), _NO_TIMES)
                self._events[stream] = event
            for other, event in list(self._events.items()):
                if other == stream:
                    continue
                try:
                    call("cuEventRecord", event, other)
                except SessionError:
                    # A stream of somebody else's, who has destroyed it.
                    del self._events[other]
                    call("cuEventDestroy_v2", event)
                    continue
                call("cuStreamWaitEvent", stream, event, 0)

    def send(self, sequence: int) -> None:
        """Has the present stream write a submission's word, behind all that it and the others were handed."""
        self.follow()
        word = self._address + 8 * self._word("ready", sequence)
        self._gpu.call("cuStreamWriteValue64_v2", self._stream(), word, sequence + 1, 0)

    def expect(self, sequence: int, sequel: Sequel) -> None:
        """Before a submission is published that streams will wait for."""
        with self._lock:
            if self._is_over:
                raise ConnectionLost("the daemon is gone", in_flight=False)
            self._awaited[sequence] = sequel.writes

    def forget(self, sequence: int) -> None:
        """It was not published."""
        self._awaited.pop(sequence, None)

    def settled(self, sequence: int) -> None:
        """Its completion was read."""
        if self._here[self._word("done", sequence)] > sequence:
            self._awaited.pop(sequence, None)

    def wait(self, sequence: int, sequel: Sequel) -> None:
        """Has the present stream wait until a submission is done, and take its word."""
        call, stream = self._gpu.call, self._stream()
        call("cuStreamWaitValue64_v2", stream, self._address + 8 * self._word("done", sequence), sequence + 1, 0)
        if sequel.rest:
            call("cuMemcpyHtoDAsync_v2", sequel.rest, self._page + 8 * self._word("rest", sequence), 4, stream)

    def give_up(self, grace_s: float) -> None:
        """The daemon is gone, or was left: streams that wait for it go on, each when it has come so far, since what is
        written for it has had other readers. Blocking. For ``grace_s`` a daemon may still be at it."""
        with self._lock:
            self._is_over = True
            sequences = sorted(self._awaited)
        until = time.monotonic() + grace_s
        for sequence in sequences:
            self._poll("ready", sequence, None)
            if not self._poll("done", sequence, until):
                self._write(self._awaited.get(sequence, []))
                self._here[self._word("rest", sequence)] = _ONE
                self._here[self._word("done", sequence)] = sequence + 1
            self._awaited.pop(sequence, None)

    def _poll(self, name: str, sequence: int, until: Optional[float]) -> bool:
        """Whether a word says so of a submission by then."""
        word = self._word(name, sequence)
        while self._here[word] <= sequence:
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(_NAP_S)
        return True

    def _write(self, writes: List[Neutral]) -> None:
        try:
            for address, pattern, count in writes:
                size, piece = len(pattern) * count, pattern * min(count, _PIECE_BYTES)
                for start in range(0, size, len(piece)):
                    part = min(len(piece), size - start)
                    self._gpu.call("cuMemcpyHtoDAsync_v2", address + start, piece, part, self._aside)
            # Not waited for without end: whoever waits for what is written here has waited long enough.
            until = time.monotonic() + _PATIENCE_S
            while not self._gpu.is_idle(self._aside) and time.monotonic() < until:
                time.sleep(_NAP_S)
        except Exception:
            # The device is lost here too, and with it what waits; whatever it is, the words are written.
            logging.getLogger("kasmina").exception("what a pass was to write on a GPU is undefined: the daemon is gone")

    def after_fork(self) -> None:
        """In the child: nothing here is its own."""
        self._lock, self._following = threading.Lock(), threading.Lock()
        self._awaited, self._is_over = {}, True


def _let_go(gpu: Gpu, memory: Any, start: int, aside: Any, events: Dict[int, Any]) -> None:
    gpu.synchronize()
    gpu.call("cuMemHostUnregister", start)
    gpu.call("cuStreamDestroy_v2", aside)
    for event in events.values():
        gpu.call("cuEventDestroy_v2", event)


def _leave(pid: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Has work done that waits for the device, by a thread of its own: finalizers call this, at any moment and in any
    thread, that for which streams wait too."""
    if pid == os.getpid():
        _left.put((work, arguments, _TRIES))


def _do_what_is_left() -> None:
    while True:
        work, arguments, tries = _left.get()
        try:
            work(*arguments)
        except SessionError:
            # Somebody captures, or the device is lost, or the process is at its end.
            if tries > 1:
                time.sleep(_TRY_AGAIN_S)
                _left.put((work, arguments, tries - 1))
        except Exception:
            logging.getLogger("kasmina").exception("memory of a GPU was not let go")
        del work, arguments


_left: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
