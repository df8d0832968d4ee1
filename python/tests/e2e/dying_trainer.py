"""A trainer on NumPy arrays that goes through everything a session can do, until it kills itself at a point of its own
side: ``dying_trainer.py SOCKET ARTIFACT [POINT[:N]]``. Without a point it goes on until it is killed.

The points wrap functions of the client here, in the test's own process; the client knows nothing of them.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

import kasmina  # noqa: E402
from kasmina import _connection, _frames, _lane  # noqa: E402

TOKENS, IMAGES = (4, 3, 8), (96, 6, 5, 5)
POINTS = {}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class At:
    """Dies at the n-th call."""

    def __init__(self, time):
        self.left = time

    def __call__(self):
        self.left -= 1
        if not self.left:
            die()


def point(name):
    def enter(arm):
        POINTS[name] = arm
        return arm

    return enter


def wrap(owner, name, before=None, after=None):
    inner = getattr(owner, name)

    def outer(*args, **kwargs):
        if before:
            before()
        result = inner(*args, **kwargs)
        if after:
            after()
        return result

    setattr(owner, name, outer)


class Struct:
    """A descriptor's layout that can be stopped in the middle of it."""

    def __init__(self, inner, at, part):
        self.inner, self.at, self.part = inner, at, part

    def pack_into(self, buffer, offset, *values):
        self.at.left -= 1
        if not self.at.left:
            raw = self.inner.pack(*values)
            count = int(len(raw) * self.part)
            buffer[offset : offset + count] = raw[:count]
            die()
        self.inner.pack_into(buffer, offset, *values)

    def unpack_from(self, *args):
        self.at()
        return self.inner.unpack_from(*args)


@point("hello.connected")
def _(at):
    wrap(_frames, "send", before=at)


@point("frame.half_sent")
def _(at):
    inner = _frames.send

    def half(sock, frame):
        if at.left == 1:
            sock.sendall(frame[: len(frame) // 2])
        at()
        inner(sock, frame)

    _frames.send = half


@point("frame.sent")
def _(at):
    wrap(_frames, "send", after=at)


@point("reply.received")
def _(at):
    wrap(_frames, "receive", after=at)


@point("memory.mapped")
def _(at):
    wrap(_connection, "map_sealed", after=at)


@point("offer.written")
def _(at):
    wrap(_connection.Connection, "_array", after=at)


@point("submission.before")
def _(at):
    wrap(_lane.Lane, "_publish", before=at)


@point("submission.half_written")
def _(at):
    _lane.SUBMISSION = Struct(_lane.SUBMISSION, at, 0.5)


@point("submission.written")
def _(at):
    _lane.SUBMISSION = Struct(_lane.SUBMISSION, at, 1.0)


@point("submission.published")
def _(at):
    class Barrier:
        def __enter__(self):
            at()

        def __exit__(self, *_):
            pass

    inner = _lane.Lane._renew_locks

    def renew(self):
        inner(self)
        self._barriers = Barrier(), self._barriers[1]

    _lane.Lane._renew_locks = renew


@point("submission.rung")
def _(at):
    wrap(_lane.Lane, "begin", after=at)


@point("wait.asleep")
def _(at):
    wrap(_lane.Lane, "_sleep", before=at)


@point("wait.woken")
def _(at):
    wrap(_lane.Lane, "_sleep", after=at)


@point("completion.unread")
def _(at):
    _lane.COMPLETION = Struct(_lane.COMPLETION, at, 1.0)


@point("completion.read")
def _(at):
    wrap(_lane.Lane, "_next", after=at)


@point("ticket.held")
def _(at):
    wrap(kasmina.Layer, "forward", after=at)


@point("ticket.spent")
def _(at):
    wrap(sys.modules["kasmina._layer"].Ticket, "spend", after=at)


@point("release.before")
def _(at):
    wrap(_lane.Lane, "release", before=at)


@point("release.after")
def _(at):
    wrap(_lane.Lane, "release", after=at)


@point("layer.closed")
def _(at):
    wrap(_connection.Connection, "_close_layer", after=at)


@point("session.ended")
def _(at):
    wrap(_lane.Lane, "close", after=at)


def train(layer, shape, count=1):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for _ in range(count):
        done = layer.forward(x, train=True, gradients=True)
        done.backward(np.ones(shape, np.float32))


def session(path, artifact):
    """A whole one."""
    client = kasmina.connect(path, reconnect=False)
    tokens = client.open_layer("tokens", seeds=2, input_shape=TOKENS[1:])
    tokens.graft(0, "mlp", 0.25, TOKENS[1:])
    tokens.graft(1, "attention", 0.25, TOKENS[1:])
    x = np.zeros(TOKENS, np.float32)
    kept = [tokens.forward(x, train=True, gradients=True) for _ in range(3)]
    train(tokens, TOKENS)
    tokens.forward(x, train=True, gradients=True)  # and its ticket is released
    train(tokens, TOKENS)
    images = client.open_layer("images", seeds=2, input_shape=IMAGES[1:])
    for seed in range(2):
        images.graft(seed, "conv-norm", 0.25, IMAGES[1:])
    train(images, IMAGES, 2)
    own = client.offer(artifact)
    hosted = client.open_layer("hosted", seeds=1, input_shape=TOKENS[1:], host=True, recompute=True)
    hosted.graft(1, own, 0.0, TOKENS[1:])
    hosted.graft(0, "mlp", 0.5, TOKENS[1:])
    train(hosted, TOKENS)
    tokens.set_alpha(0, 0.5)
    tokens.blend_by(1, kasmina.Schedule("linear", 2, 0.5))
    train(tokens, TOKENS, 3)
    tokens.graft(0, "mlp", 0.5, TOKENS[1:])
    train(tokens, TOKENS)
    tokens.blend_by(1, kasmina.Schedule("linear", 50, 0.25))
    tokens.hold(1)
    tokens.fossilize(1)
    tokens.prune(1)
    broken = next(entry for entry in tokens.grafted[0].parameters if entry.name == "up.weight")
    weights = tokens.grafted[0].array(broken)
    before = weights.copy()
    weights[...] = np.nan
    for _ in range(3):
        tokens.forward(x, train=True)
    weights[...] = before
    while tokens.seed_state(0)["state"] != "holding":
        pass
    train(tokens, TOKENS)
    hosted.close()
    client.connection.request("seed_state", layer=tokens.number, seed=0)
    del kept
    client.close()


def main():
    path, artifact, *at = sys.argv[1:]
    if at:
        name, _, time = at[0].partition(":")
        POINTS[name](At(int(time or 1)))
    artifact = Path(artifact).read_bytes()
    # One that goes on beside those that come and go.
    beside = kasmina.connect(path, reconnect=False)
    layer = beside.open_layer("beside", seeds=1, input_shape=TOKENS[1:])
    layer.graft(0, "mlp", 0.5, TOKENS[1:])
    kept = layer.forward(np.zeros(TOKENS, np.float32), train=True, gradients=True)
    while kept is not None:
        train(layer, TOKENS)
        session(path, artifact)


if __name__ == "__main__":
    main()
