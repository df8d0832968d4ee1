"""Passes that are under way while the trainer goes on."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Generator, Optional, Sequence

import torch

from ..errors import ConnectionLost
from ._alphas import alphas_of
from ._function import Blend, wanted_of
from ._pass import Pass, running

if TYPE_CHECKING:
    import asyncio

    from .._lane import Lane
    from ._layer import SeededLayer


class Pending:
    """A layer's output that may not be there yet, as ``concurrent.futures.Future`` has it.

    It can be awaited too. The output is made, and recorded for autograd, in the thread that first asks for it.
    """

    def __init__(self, layer: SeededLayer, x: torch.Tensor, h: Optional[torch.Tensor], started: Optional[Pass],
                 cast: Optional[torch.dtype] = None, alphas: Sequence[torch.Tensor] = (),
                 tensors: Sequence[torch.Tensor] = (), is_recorded: bool = False) -> None:
        self._layer = layer
        self._x, self._h, self._started = x, h, started
        self._cast = cast
        self._alphas, self._tensors = alphas, tensors
        self._recorded = is_recorded
        self._grad = torch.is_grad_enabled()
        # As they were when it was published: the daemon reads the parameters again in the backward.
        self._versions = [tensor._version for tensor in tensors] if self._recorded else []
        self._x_version = None if h is not None or x.is_inference() else x._version
        self._lock = threading.RLock()
        self._y: Optional[torch.Tensor] = None if started is not None else h
        self._error: Optional[BaseException] = None

    def done(self) -> bool:
        """Whether ``result`` would return at once. Never waits."""
        started = self._started
        return started is None or started.finished()

    def running(self) -> bool:
        """Whether the daemon is still at it."""
        return not self.done()

    def cancel(self) -> bool:
        """False: what is published is run. Drop the object if the output is not wanted any more."""
        return False

    def cancelled(self) -> bool:
        """False."""
        return False

    def result(self, timeout: Optional[float] = None) -> torch.Tensor:
        """The layer's output. Raises what calling the layer would, or ``TimeoutError``."""
        with self._lock:
            if self._started is not None:
                deadline = None if timeout is None else time.monotonic() + timeout
                try:
                    self._y = self._layer._guarded(self._alone, lambda: self._settle(deadline))
                except TimeoutError:
                    raise
                except BaseException as error:
                    self._error = error
                self._started = self._x = self._h = None  # type: ignore[assignment]
                self._alphas = self._tensors = ()
            if self._error is not None:
                raise self._error
            assert self._y is not None
            return self._y

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        """What ``result`` raises, or None."""
        try:
            self.result(timeout)
        except TimeoutError:
            raise
        except BaseException as error:
            return error
        return None

    def add_done_callback(self, callback: Callable[[Pending], Any]) -> None:
        """Calls ``callback(self)`` when the daemon is done, in a thread of the client's or at once."""
        started = self._started
        if started is None or started.finished():
            _call(lambda: callback(self))
        else:
            _watch(started, lambda: callback(self))

    def __await__(self) -> Generator[Any, None, torch.Tensor]:
        import asyncio

        yield from self._arrival()
        # Where the daemon had no room, the loop goes on until it has.
        while (pause := self._until_room()) is not None:
            yield from asyncio.sleep(pause).__await__()
            self._begin_again()
            yield from self._arrival()
        return self.result()

    def _arrival(self) -> Generator[Any, None, None]:
        if not self.done():
            import asyncio

            loop = asyncio.get_running_loop()
            arrived: asyncio.Future[None] = loop.create_future()

            def arrive() -> None:
                if not arrived.done():
                    arrived.set_result(None)

            def tell(_: Any) -> None:
                try:
                    loop.call_soon_threadsafe(arrive)
                except RuntimeError:
                    pass  # the loop was closed: nobody waits any more

            self.add_done_callback(tell)
            yield from arrived

    def _until_room(self) -> Optional[float]:
        with self._lock:
            return None if self._started is None else self._started.until_room()

    def _begin_again(self) -> None:
        with self._lock:
            # Somebody may have asked for the result meanwhile.
            if self._started is not None and self._started.refusal() is not None:
                try:
                    self._started.begin_again()
                except ConnectionLost:
                    pass  # result tells

    def _alone(self) -> torch.Tensor:
        """The host's output, where the daemon has run nothing."""
        if self._h is not None:
            return self._h
        if self._x_version is not None and self._x._version != self._x_version:
            raise ConnectionLost(
                "the daemon is gone, and the pass cannot be the host's alone: x was written to after it was submitted",
                in_flight=False,
            )
        with torch.set_grad_enabled(self._grad):
            return self._layer._host(self._x)

    def _settle(self, deadline: Optional[float]) -> torch.Tensor:
        started = self._started
        assert started is not None
        started.complete(deadline)
        if self._recorded:
            if [tensor._version for tensor in self._tensors] != self._versions:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"a parameter of layer {self._layer.name!r} was changed, by an optimizer's step perhaps, between "
                    "submit and result. Ask for the result first"
                )
            with torch.inference_mode(False), torch.enable_grad():
                many = [*self._alphas, *self._tensors]
                y = Blend.apply(self._layer, started, self._x, self._h, len(self._alphas), *many)
        else:
            with torch.no_grad():
                y = started.settle(self._h)
        return y if self._cast is None else y.to(self._cast)


def own(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A host's output that stays what it is when x is written to."""
    is_view = isinstance(h, torch.Tensor) and h.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    return h.clone() if is_view else h


def submit(
    layer: SeededLayer, x: torch.Tensor, h: Optional[torch.Tensor], cast: Optional[torch.dtype], waits: bool
) -> Pending:
    """Publishes a pass and does not wait for it, but for room in the arena with ``waits``."""
    with layer._changing:
        alphas, (_, _, ran, tensors) = alphas_of(layer), running(layer)
        # Something wants a gradient, of the host's output perhaps; then the record is kept as it is in a call.
        want = wanted_of(layer, x, h, alphas, tensors)
        started = Pass(layer, ran, x, h, want or 0, alphas, copy=True, waits=waits)
    return Pending(layer, x, h, started, cast, alphas, tensors, want is not None)


_watchers: "weakref.WeakKeyDictionary[Lane, queue.SimpleQueue[Any]]" = weakref.WeakKeyDictionary()
_watchers_lock = threading.Lock()


def _watch(started: Pass, callback: Callable[[], Any]) -> None:
    """Calls back from a thread that waits for the passes of one session, in their order."""
    lane = started.lane
    with _watchers_lock:
        todo = _watchers.get(lane)
        if todo is None:
            todo = _watchers[lane] = queue.SimpleQueue()
            threading.Thread(target=_work, args=(todo,), name="kasmina-watcher", daemon=True).start()
            # The thread holds the lane only while it waits for a pass of it.
            weakref.finalize(lane, todo.put, None).atexit = False
    todo.put((lane, started._sequence, callback))


def _work(todo: "queue.SimpleQueue[Any]") -> None:
    while True:
        item = todo.get()
        if item is None:
            return
        lane, sequence, callback = item
        lane.wait(sequence)
        del lane, item
        _call(callback)
        del callback


def _call(callback: Callable[[], Any]) -> None:
    """As concurrent.futures does: a callback's mistake is told and harms nobody else."""
    try:
        callback()
    except Exception:
        logging.getLogger("kasmina").exception("a callback of a pass failed")
