"""The data path: descriptors in shared memory, a doorbell for whoever sleeps.

Ordering. A descriptor is written before the counter that publishes it, and x86 keeps the order of stores.
Between publishing and asking whether the daemon sleeps stands an atomic operation, a lock taken, because x86 may
let a load overtake an earlier store. Elsewhere neither can be had from pure Python: there the client always
rings and always sleeps, and the system calls on both ends are the barriers.
"""

from __future__ import annotations

import os
import platform
import select
import socket
import threading
import time
import weakref
from collections import deque, namedtuple
from typing import Any, Deque, Dict, List, Optional, Set, Tuple

from ._cuda import Sequel, Signals
from ._layout import (
    COMPLETION,
    DESCRIPTOR_BYTES,
    HEADER_WORDS,
    LAYOUT,
    RELEASE,
    RING_ENTRIES,
    STATUS_CODES,
    SUBMISSION,
)
from .errors import ConnectionLost, KasminaError, SessionError, UsageError, from_code, whole

Completion = namedtuple(  # type: ignore[misc]
    "Completion", [f["name"] for f in LAYOUT["completion"] if not f["name"].startswith("reserved")]
)
# As its own `_make` does, which asks once more how many there are.
_new: Any = tuple.__new__

_SUBMISSION_TAIL = HEADER_WORDS["submission_tail"]
_SUBMISSION_HEAD = HEADER_WORDS["submission_head"]
_COMPLETION_TAIL = HEADER_WORDS["completion_tail"]
_COMPLETION_HEAD = HEADER_WORDS["completion_head"]
_DAEMON_SLEEPING = HEADER_WORDS["daemon_sleeping"]
_CLIENT_SLEEPING = HEADER_WORDS["client_sleeping"]
_MASK = RING_ENTRIES - 1
_RING_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
#: What `poll` says of a socket whose other end is closed.
GONE = getattr(select, "POLLRDHUP", 0x2000)
_TSO = platform.machine() in ("x86_64", "AMD64", "i686")
_NO_DIMS: Tuple[int, ...] = (0,) * 18
_NO_EXTRA: Tuple[int, ...] = (0,) * 4

#: After how long whoever waits for another thread's reading looks for itself, where nobody has woken it.
_PATIENCE_S = 1.0

#: Less is not worth looking at the clock for.
_LEAST_SPIN_S = 1e-6
#: A sleep that ended so much later than would have been spun was short: waking up took as long, on both sides.
_WAKING_S = 1e-4

#: How long ``drain`` sleeps between two looks.
_DRAIN_NAP_S = 0.0005

_lanes: "weakref.WeakSet[Lane]" = weakref.WeakSet()


class Lane:
    """One session's data path. Threads may share it.

    Who publishes holds ``_lock``, who reads completions ``_reader``; the first is never taken under the second.
    Of the threads that wait one reads for all: it puts aside what is not its own and wakes whose it is.

    A signal's handler may raise in the main thread after any call. So a lock that was only tried for is one that knows
    its owner, and is let go by whoever owns it; and what is read is put where its waiter looks before it counts as read.
    """

    def __init__(
        self, memory: Any, doorbell: socket.socket, arena: Any, spin_us: int, signals: Optional[Signals] = None
    ) -> None:
        self._buffer = memoryview(memory)
        self._words = self._buffer.cast("Q")
        self._doorbell = doorbell
        #: Where tensors lie on a GPU, what orders its work with the daemon's.
        self.signals = signals
        #: The place of a submission that was begun and not published.
        self._spoilt = -1
        #: Submissions of which nobody will ask, and whose tickets are others' to give back.
        self._ignored: Set[int] = set()
        self._submissions: int = arena["submissions_offset"]
        self._completions: int = arena["completions_offset"]
        self._tail = 0
        self._head = 0
        # How long to look for a completion before sleeping, and how long the next time.
        self._spin_s = self._next_spin_s = spin_us / 1e6 if _TSO else 0.0
        self._renew_locks()
        #: What is under way: the layer, and what must live until the daemon is done with it.
        self._awaited: Dict[int, Tuple[int, Any]] = {}
        self._done: Dict[int, Completion] = {}
        self._gates: Dict[int, Any] = {}
        self._abandoned: Set[int] = set()
        self._releases: Deque[Tuple[int, int]] = deque()
        self._lost = ""
        #: Whether the daemon's lane has ended: then what it has taken from the ring is all that it ever will.
        self._peer_ended = False
        self._forked = False
        # Without spinning the client sleeps in every wait, so the flag stays up.
        self._words[_CLIENT_SLEEPING] = 0 if self._spin_s else 1
        _lanes.add(self)

    def _renew_locks(self) -> None:
        self._lock: Any = threading.RLock()
        self._reader: Any = threading.RLock()
        # One each: a finalizer may publish in the middle of a thread's wait.
        self._barriers = threading.Lock(), threading.Lock()

    @property
    def alive(self) -> bool:
        return not self._lost and not self._forked

    @property
    def peer_ended(self) -> bool:
        """Whether the daemon's lane has ended, by itself and not because this side did first."""
        return self._peer_ended

    @property
    def lost(self) -> str:
        """Why it has ended, or nothing."""
        return self._lost

    def run(
        self,
        verb: int,
        flags: int,
        layer: int,
        dtype: int = 0,
        ticket: int = 0,
        rng_seed: int = 0,
        blocks: Tuple[int, ...] = (0,) * 12,
        dims: Tuple[int, ...] = _NO_DIMS,
        extra: Tuple[int, ...] = _NO_EXTRA,
        held: Any = None,
    ) -> Completion:
        """Publishes a submission and waits for its completion. Every submission has one, in order.

        ``blocks`` are offset and bytes of input, output, grad_output, grad_input, grad_parameters and
        grad_alphas; ``dims`` are both ranks, then eight sizes of the input and eight of the output; ``extra``
        are offset and bytes of alphas given with a forward and of a gradient for seeds in training.

        ``held`` is as of ``begin``.

        Raises the refusal's exception; ``ConnectionLost`` when the daemon is gone, whose ``in_flight`` tells
        whether it may have begun with the submission.
        """
        sequence = self.begin(held, verb, flags, layer, dtype, ticket, rng_seed, blocks, dims, extra)
        return self.finish(sequence, layer)

    def begin(
        self,
        held: Any,
        verb: int,
        flags: int,
        layer: int,
        dtype: int = 0,
        ticket: int = 0,
        rng_seed: int = 0,
        blocks: Tuple[int, ...] = (0,) * 12,
        dims: Tuple[int, ...] = _NO_DIMS,
        extra: Tuple[int, ...] = _NO_EXTRA,
        sequel: Optional[Sequel] = None,
    ) -> int:
        """Publishes a submission and returns its sequence, of which ``finish`` or ``abandon`` must follow.

        ``held`` lives until the daemon is done with it: all that it reads and writes. So an exception that comes from
        elsewhere, as a signal's handler raises it, may leave a pass at any moment. With ``sequel`` the present stream of a
        GPU waits for it from then on.
        """
        sequence = -1
        if self._lock._is_owned():
            raise UsageError("a signal's handler cannot run a pass in the middle of another one: set a flag there instead")
        try:
            with self._lock:
                if self._releases:
                    self._flush(True)
                sequence = self._publish(
                    held, verb, flags, layer, dtype, ticket, rng_seed, blocks, dims, extra, sequel
                )
        except BaseException:
            if sequence >= 0:
                self.abandon(sequence, layer)
            raise
        return sequence

    def finish(self, sequence: int, layer: int, deadline: Optional[float] = None) -> Completion:
        """Waits for a submission's completion, as ``run`` does. With a ``deadline``, ``TimeoutError`` leaves it under
        way; every other exception abandons it."""
        try:
            completion = self._await(sequence, deadline)
            if self._releases:
                self._try_flush()
            if completion.status:
                code = STATUS_CODES.get(completion.status, "internal.bug")
                message = completion.message[: completion.message_bytes].decode("utf-8", "replace")
                is_cut = completion.message_bytes == len(completion.message)
                raise from_code(code, whole(code, message, is_cut), layer=layer)
        except BaseException as error:
            if isinstance(error, ConnectionLost):
                error.in_flight = self._may_have_begun(sequence)
            if deadline is None or not isinstance(error, TimeoutError):
                self.abandon(sequence, layer)
            raise
        # Only now, so that whatever leaves this finds the ticket to give back.
        del self._done[sequence]
        return completion

    def finished(self, sequence: int) -> bool:
        """Whether ``finish`` would return at once. Never waits."""
        if sequence not in self._done:
            try:
                if self._reader.acquire(False):
                    while self._head != self._words[_COMPLETION_TAIL]:
                        self._read(None)
            finally:
                self._let_go()
        return sequence in self._done or sequence not in self._awaited or not self.alive

    def refusal(self, sequence: int) -> Optional[str]:
        """The code by which a submission was refused, if it is done and was; ``finish`` will raise it."""
        completion = self._done.get(sequence)
        if completion is None or not completion.status:
            return None
        return STATUS_CODES.get(completion.status, "internal.bug")

    def wait(self, sequence: int) -> None:
        """Waits until a submission is done or the daemon gone; its completion stays for ``finish``."""
        try:
            while not self.finished(sequence):
                try:
                    reads = self._reader.acquire(False)
                    if reads and sequence in self._awaited:
                        self._read(None)
                finally:
                    self._let_go()
                if not reads:
                    self._follow(sequence, None)
        except KasminaError:
            pass  # finish says what it was

    def wait_for_oldest(self) -> bool:
        """Waits until one more submission is done, if any is under way: what it held is free then."""
        under_way = self._published()
        if not under_way or not self.alive:
            return False
        self.wait(min(under_way))
        return True

    def _published(self) -> List[int]:
        """What is under way: not what was begun and never published."""
        tail = self._words[_SUBMISSION_TAIL]
        return [sequence for sequence in list(self._awaited) if sequence < tail]

    def drain(self, limit_s: float) -> None:
        """Waits until nothing is under way, or as long as the limit."""
        until = time.monotonic() + limit_s
        try:
            while (under_way := self._published()) and self.alive and time.monotonic() < until:
                if not self.finished(min(under_way)):
                    time.sleep(_DRAIN_NAP_S)
        except KasminaError:
            pass  # there is nothing to wait for any more

    def ignore(self, sequence: int) -> None:
        """Nobody will ask for this submission again, and its ticket, if it takes one, is another's to give back. Never
        blocks and never raises."""
        self._ignored.add(sequence)
        self._forget_ignored(sequence)

    def abandon(self, sequence: int, layer: int) -> None:
        """Nobody will ask for this submission again. Never blocks and never raises, as ``release``."""
        self._abandoned.add(sequence)
        self._forget_abandoned(sequence, layer)

    def release(self, layer: int, ticket: int) -> None:
        """Gives a ticket back. Never blocks and never raises: finalizers call it, at any moment."""
        self._releases.append((layer, ticket))
        self._try_flush()

    def close(self, reason: str) -> None:
        """Ends the data path."""
        try:
            if not self._lost:
                # After the shutdown the ends look alike, whoever was first.
                poll = select.poll()
                poll.register(self._doorbell, GONE)
                self._peer_ended = self._peer_ended or bool(poll.poll(0))
        except (OSError, ValueError):
            pass  # it is closed
        self._lost = self._lost or reason
        try:
            self._doorbell.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the daemon was first

    def _try_flush(self) -> None:
        # Whoever holds the lock flushes after it; it may be this very thread, interrupted by a collection.
        if self._lock._is_owned():
            return
        try:
            if self._lock.acquire(False) and self.alive:
                self._flush(False)
        except (KasminaError, OSError):
            pass
        finally:
            if self._lock._is_owned():
                self._lock.release()

    def _flush(self, may_wait: bool) -> None:
        while self._releases and (may_wait or self._tail - self._head < RING_ENTRIES):
            layer, ticket = self._releases[0]
            self._publish(None, RELEASE, 0, layer, 0, ticket, 0, (0,) * 12, _NO_DIMS, _NO_EXTRA)
            self._releases.popleft()

    def _publish(
        self,
        held: Any,
        verb: int,
        flags: int,
        layer: int,
        dtype: int,
        ticket: int,
        rng_seed: int,
        blocks: Tuple[int, ...],
        dims: Tuple[int, ...],
        extra: Tuple[int, ...],
        sequel: Optional[Sequel] = None,
    ) -> int:
        if self._lost or self._forked:
            self._refuse()
        if self._spoilt >= 0 and verb != RELEASE:
            # Something interrupted the one that was to have this place. A release of no ticket takes it.
            self._publish(None, RELEASE, 0, layer, 0, 0, 0, (0,) * 12, _NO_DIMS, _NO_EXTRA)
        # With at most a ring's worth under way neither ring can overflow.
        while self._tail - self._head >= RING_ENTRIES:
            self._make_room()
        tail = self._tail
        if verb != RELEASE:
            self._awaited[tail] = layer, held
            if self.signals is not None:
                # Until it is published, a word that says that it is ready is another's, if any.
                self._spoilt = tail
                self.signals.send(tail)
                # Only now: whoever gives up waits for that word.
                if sequel is not None:
                    self.signals.expect(tail, sequel)
        else:
            self._awaited.pop(tail, None)  # of one that was interrupted before it was published
            if self.signals is not None:
                self.signals.forget(tail)
        offset = self._submissions + (tail & _MASK) * DESCRIPTOR_BYTES
        SUBMISSION.pack_into(
            self._buffer,
            offset,
            verb,
            flags,
            tail,
            layer,
            dtype,
            ticket,
            rng_seed,
            *blocks,
            *dims,
            *extra,
        )
        try:
            self._tail = tail + 1
            self._words[_SUBMISSION_TAIL] = tail + 1
            self._spoilt = -1
            with self._barriers[0]:  # a fence, see above
                pass
            if self._words[_DAEMON_SLEEPING] or not _TSO:
                try:
                    self._doorbell.send(b"\1", _RING_FLAGS)
                except BlockingIOError:
                    pass  # its buffer is full: it has been rung often enough
                except TimeoutError:
                    raise  # a signal's handler's
                except OSError as error:
                    self._awaited.pop(tail, None)
                    self._peer_ended = self._peer_ended or not self._lost
                    self._lose(str(error), in_flight=self._may_have_begun(tail))
            if sequel is not None:
                assert self.signals is not None
                self.signals.wait(tail, sequel)
        except BaseException:
            if self._tail > tail and tail in self._awaited:
                self.abandon(tail, layer)  # nobody is told its number
            raise
        return tail

    def _make_room(self) -> None:
        with self._reader:
            if self._tail - self._head >= RING_ENTRIES:
                self._read(None)
        self._hand_over()

    def _await(self, sequence: int, deadline: Optional[float]) -> Completion:
        """The completion of a submission, which stays where it is."""
        while True:
            try:
                if self._reader.acquire(False):
                    while True:
                        # In this order: it is done before it is not awaited any more.
                        is_awaited = sequence in self._awaited
                        completion = self._done.get(sequence)
                        if completion is not None:
                            return completion
                        if not is_awaited:
                            raise ConnectionLost("the pass was abandoned", in_flight=False)
                        self._read(deadline)
            finally:
                self._let_go()
            self._follow(sequence, deadline)
            completion = self._done.get(sequence)
            if completion is not None:
                return completion

    def _follow(self, sequence: int, deadline: Optional[float]) -> None:
        """Waits while another thread reads, until this sequence is done or somebody has to read on."""
        gate = self._gates.setdefault(sequence, threading.Semaphore(0))
        try:
            # Looked at after the gate can be seen: whoever reads looks for gates after it has read.
            if sequence not in self._done and self._is_read():
                timeout = _PATIENCE_S if deadline is None else min(_PATIENCE_S, deadline - time.monotonic())
                if timeout <= 0 or not gate.acquire(timeout=timeout) and timeout < _PATIENCE_S:
                    raise TimeoutError("the pass is still under way")
        finally:
            self._gates.pop(sequence, None)

    def _is_read(self) -> bool:
        """Whether another thread reads now."""
        try:
            return not self._reader.acquire(False)
        finally:
            if self._reader._is_owned():
                self._reader.release()

    def _let_go(self) -> None:
        """After a try to become the reader: if this thread has, another one may."""
        try:
            if self._reader._is_owned():
                self._reader.release()
        finally:
            if self._gates:
                self._hand_over()

    def _hand_over(self) -> None:
        for gate in list(self._gates.values()):
            gate.release()

    def _read(self, deadline: Optional[float]) -> None:
        """Takes one completion from the ring and puts it where its waiter looks. Under ``_reader``."""
        completion = self._next(deadline)
        sequence, head = completion.sequence, self._head
        awaited = self._awaited.get(sequence)
        if awaited is not None:  # else a ticket's release
            self._done[sequence] = completion
            if self.signals is not None:
                self.signals.settled(sequence)
        self._head = head + 1
        self._words[_COMPLETION_HEAD] = head + 1
        if awaited is None:
            return
        try:
            del self._awaited[sequence]
        finally:
            if self._abandoned:
                self._forget_abandoned(sequence, awaited[0])
            if self._ignored:
                self._forget_ignored(sequence)
        gate = self._gates.get(sequence)
        if gate is not None:
            gate.release()

    def _forget_abandoned(self, sequence: int, layer: int) -> None:
        # Whichever of the two comes second, its completion or its owner's end, finds the other here.
        if sequence in self._abandoned:
            completion = self._done.pop(sequence, None)
            if completion is not None:
                self._abandoned.discard(sequence)
                if completion.ticket:
                    self.release(layer, completion.ticket)

    def _forget_ignored(self, sequence: int) -> None:
        # As in `_forget_abandoned`, whichever of the two comes second.
        if sequence in self._ignored and self._done.pop(sequence, None) is not None:
            self._ignored.discard(sequence)

    def _next(self, deadline: Optional[float]) -> Completion:
        """The completion that is read next, when it is there."""
        words = self._words
        head = self._head
        tail = words[_COMPLETION_TAIL]
        if tail == head:
            began = time.perf_counter()
            if not self._next_spin_s or not self._spin(head, began + self._next_spin_s):
                while words[_COMPLETION_TAIL] == head:
                    self._sleep(head, deadline)
            self._learn_spin(time.perf_counter() - began)
            tail = words[_COMPLETION_TAIL]
        if tail - head > RING_ENTRIES or tail < head:
            self.close(f"the completion ring's counters are impossible: head {head}, tail {tail}")
            raise SessionError(self._lost, code="session.protocol")
        offset = self._completions + (head & _MASK) * DESCRIPTOR_BYTES
        return _new(Completion, COMPLETION.unpack_from(self._buffer, offset))

    def _spin(self, head: int, until: float) -> bool:
        words, now, give_way = self._words, time.perf_counter, os.sched_yield
        while now() < until:
            if words[_COMPLETION_TAIL] != head:
                return True
            # What is waited for may need this processor.
            give_way()
        return False

    def _learn_spin(self, waited: float) -> None:
        """Takes note of a wait. Who waits for long passes soon sleeps at once, and so spins no more in vain."""
        if waited <= self._spin_s + _WAKING_S:
            self._next_spin_s = self._spin_s
        else:
            self._next_spin_s = self._next_spin_s / 2 if self._next_spin_s > _LEAST_SPIN_S else 0.0

    def _sleep(self, head: int, deadline: Optional[float]) -> None:
        if self._spin_s:
            self._words[_CLIENT_SLEEPING] = 1
            with self._barriers[1]:  # a fence, see above
                pass
            if self._words[_COMPLETION_TAIL] != head:
                self._words[_CLIENT_SLEEPING] = 0
                return
        try:
            if deadline is not None:
                self._sleep_until(deadline)
            rung = self._doorbell.recv(64)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            rung, reason = b"", str(error)
        else:
            reason = "the connection was closed"
        finally:
            if self._spin_s:
                self._words[_CLIENT_SLEEPING] = 0
        if not rung and not self._lost:
            self._peer_ended = True
        # What was published before the daemon died still counts.
        if not rung and self._words[_COMPLETION_TAIL] == head:
            self._lose(reason, in_flight=True)

    def _may_have_begun(self, sequence: int) -> bool:
        """Whether the daemon has taken a submission out of the ring, or may still do so: it says that it has before
        it begins with it, and takes none once its end of the doorbell is closed."""
        return not self._peer_ended or self._words[_SUBMISSION_HEAD] > sequence

    def _sleep_until(self, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._doorbell, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("the pass is still under way")

    def _lose(self, reason: str, in_flight: bool) -> None:
        self._lost = self._lost or f"the daemon is gone: {reason}"
        raise ConnectionLost(self._lost, in_flight=in_flight)

    def _refuse(self) -> None:
        if self._forked:
            raise UsageError(
                "this process was forked from the one that connected and shares its memory: "
                "call kasmina.connect again here"
            )
        raise ConnectionLost(self._lost, in_flight=False)


def _after_fork() -> None:
    """In the child: let go of the sockets, so that the parent's death does not go unnoticed."""
    for lane in list(_lanes):
        lane._forked = True
        lane._renew_locks()
        lane._doorbell.close()


os.register_at_fork(after_in_child=_after_fork)
