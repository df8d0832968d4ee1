"""Exceptions that come from elsewhere: a signal's handler may raise in the middle of any pass."""

import contextlib
import gc
import signal

import pytest
import torch

import kasmina
from .composition import near, pair
from .conftest import settled



class Preempted(Exception):
    """As batch systems have it raised before they take a machine away."""


class Alarm(TimeoutError):
    """As people write time limits."""


@contextlib.contextmanager
def alarm(kind, after_s):
    """Raises ``kind`` in what the main thread is at, once."""

    def fire(*_):
        raise kind()

    before = signal.signal(signal.SIGALRM, fire)
    try:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(kind, work):
    """Whether the alarm has struck. Nothing holds on to the exception, and so to what its frames held."""
    try:
        with alarm(kind, 0.05):
            work()
    except kind:
        return True
    return False


def stop(daemon):
    daemon.process.send_signal(signal.SIGSTOP)
    settled(daemon.stopped)


def go_on(daemon):
    daemon.process.send_signal(signal.SIGCONT)


def tickets(daemon):
    return sum(session["tickets"] for session in daemon.status()["sessions"])


@pytest.mark.parametrize("kind", (Preempted, Alarm, KeyboardInterrupt))
@pytest.mark.parametrize("host", ("trainer", "daemon"))
def test_a_backward_that_is_interrupted_spoils_no_later_pass(daemon, client, kind, host):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    x = torch.randn(shape, requires_grad=True)
    truth = plain(x)
    y = layer(x)
    stop(daemon)
    assert interrupted(kind, y.sum().backward)
    # What the daemon still writes the gradients to must not be given to these.
    later = [layer.submit(x) for _ in range(3)]
    go_on(daemon)
    for one in later:
        near(one.result().detach(), truth.detach(), "output")
    del y, later, one
    layer(x).sum().backward()
    assert client.connected
    settled(lambda: tickets(daemon) == 0)


@pytest.mark.parametrize("kind", (Preempted, Alarm, KeyboardInterrupt))
def test_a_forward_that_is_interrupted_gives_back_what_it_took(daemon, client, kind):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5])
    x = torch.randn(shape, requires_grad=True)
    layer(x)
    gc.collect()
    free = client.connection._heap.free_bytes
    for _ in range(3):
        stop(daemon)
        assert interrupted(kind, lambda: layer(x))
        later = layer.submit(x)
        go_on(daemon)
        near(later.result().detach(), plain(x).detach(), "output")
        del later
    lane = client.connection._lane
    layer(x)
    gc.collect()
    settled(lambda: tickets(daemon) == 0)
    assert client.connection._heap.free_bytes == free
    assert not lane._done and not lane._abandoned and not lane._awaited


def test_interrupts_at_any_moment(daemon, client):
    """Wherever it strikes nobody waits for ever, and what comes later is right."""
    layer, plain, shape = pair(client, ["attention"], "convex", [0.5])
    x = torch.randn(200, *shape[1:], requires_grad=True)
    truth = plain(x).detach()
    struck = 0
    for after in range(150):
        try:
            with alarm(Preempted, 0.0001 + 0.00005 * after):
                y = layer(x)
                y.square().sum().backward()
        except Preempted:
            struck += 1
        near(layer(x).detach(), truth, "output")
        y = x.grad = None
        layer.zero_grad()
    assert struck and client.connected
    gc.collect()
    settled(lambda: tickets(daemon) == 0)


def test_a_request_that_is_interrupted_ends_the_connection_and_no_more(daemon, client):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5])
    stop(daemon)
    assert interrupted(Preempted, layer.seeds[0].stats)
    go_on(daemon)
    # Its reply would have been taken for the next one's.
    x = torch.randn(shape)
    with pytest.warns(kasmina.ConnectionWarning):
        settled(lambda: (layer(x), layer.seeds[0].present and layer.connected)[1])
    near(layer(x).detach(), plain(x).detach(), "output")
    assert layer.seeds[0].stats()["executions"] >= 1


def test_a_finalizer_that_is_interrupted_mixes_up_no_replies(client):
    layer, _, _ = pair(client, ["mlp"], "convex", [0.5])
    other, _, _ = pair(client, ["mlp"], "convex", [0.5], name="other")
    connection = client.connection

    class Struck(type(connection._socket)):
        """A socket after whose next frame the handler strikes, once."""

        __slots__ = ()

        def send(self, *arguments):
            super().send(*arguments)
            self.__class__ = type(self).__mro__[1]
            raise Preempted

    connection._socket.__class__ = Struck
    with pytest.raises(Preempted):
        other.remote.close()
    assert layer.seeds[0].stats()["executions"] == 0
    assert layer.seeds[0].last_error() is None
