"""kill -9 of a trainer at every point of its own side, and while the daemon is at every point of its (src/failpoint.rs).

What the daemon held for it is free afterwards: sessions, layers, seeds, tickets, bytes, memory files, threads, leases and
descriptors. A trainer beside it loses no step and gets the gradients of plain PyTorch all the while.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .composition import compare, pair
from .conftest import Daemon, daemons, ended, settled
from .crash import BUILD, FAILPOINTS, SOON, Dying, points
from .dying_trainer import POINTS

#: The kernels of a trainer beside it.
SURVIVORS = ("mlp", "attention")
TRAINER = Path(__file__).with_name("dying_trainer.py")
#: Further times at which a point is reached, in other circumstances: of another request, of a backward or of a release.
AGAIN = {
    "hello.connected": (4, 5),
    "frame.half_sent": (2, 3, 5, 6),
    "frame.sent": (2, 3, 5),
    "reply.received": (2, 3, 5),
    "memory.mapped": (2, 4),
    "submission.before": (2, 3, 7),
    "submission.half_written": (2, 3, 7),
    "submission.written": (2, 3, 7),
    "submission.published": (2, 3, 7),
    "submission.rung": (2, 3),
    "completion.unread": (2, 3),
    "completion.read": (2, 3),
    "ticket.held": (2, 5),
}


@pytest.fixture
def settle(kernels):
    """Starts daemons of a class; what still runs at the end is killed."""
    with daemons(kernels, settings=SOON) as begin:
        yield lambda kind, **environment: begin(kind=kind, environment=environment)


def start(daemon, kernels, *point):
    command = [sys.executable, str(TRAINER), str(daemon.socket), str(kernels / "mlp.pt2"), *point]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def held(daemon):
    """What the daemon's process holds that comes and goes with sessions."""
    folder = Path("/proc", str(daemon.process.pid))
    links = []
    for link in (folder / "fd").iterdir():
        try:
            links.append(os.readlink(link))
        except FileNotFoundError:
            pass
    # Operators come and go here all the time, and a connection of theirs is closed a little after they have gone.
    with open("/proc/net/unix") as sockets:
        operators = {f"socket:[{line.split()[6]}]" for line in sockets if line.rstrip().endswith(str(daemon.control))}
    threads = []
    for task in (folder / "task").iterdir():
        try:
            threads.append((task / "comm").read_text())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return {
        "sockets": sum(link.startswith("socket:") and link not in operators for link in links),
        "events": sum(link.startswith("anon_inode:") for link in links),
        "memory files": sum("memfd" in link for link in links),
        "mappings": (folder / "maps").read_text().count("memfd:kasmina"),
        "threads": sum(name.startswith(("lane", "seed")) for name in threads),
    }


def counted(daemon):
    """What the daemon itself counts: sessions, what they hold of tickets, seeds, leases, and kernels that a trainer has
    brought along, of which only it knows the names."""
    with daemon.operator() as operator:
        status, seeds, cache = operator.status(), operator.seeds()["seeds"], operator.cache()
    return {
        "sessions": len(status["sessions"]),
        "tickets": sum(session["tickets"] + session["saved_bytes"] for session in status["sessions"]),
        "seeds": sorted((seed["layer_name"], seed["kernel"]) for seed in seeds),
        "leases": {each["kernel"]: each["holders"] for each in cache["kernels"] if each["holders"]},
        "offered": [each["kernel"] for each in cache["kernels"] if each["kernel"].startswith("offered")],
    }


def free(daemon, before, kernels=()):
    """Waits until nothing is left but what was held before, and a survivor's kernels."""
    left = {
        "sessions": 1 if kernels else 0,
        "tickets": 0,
        "seeds": sorted(("survivor", kernel) for kernel in kernels),
        "leases": dict.fromkeys(kernels, 1),
        "offered": [],
    }
    try:
        settled(lambda: (held(daemon), counted(daemon)) == (before, left))
    except AssertionError:
        assert (held(daemon), counted(daemon)) == (before, left)  # says what differs
        raise


TIMES = [name if time == 1 else f"{name}:{time}" for name in POINTS for time in (1, *AGAIN.get(name, ()))]


@pytest.mark.parametrize("point", TIMES)
def test_a_trainer_that_dies_leaves_nothing_behind_and_disturbs_nobody(settle, kernels, point):
    daemon = settle(Daemon)
    with daemon.connect() as client:
        layer, plain, shape = pair(client, SURVIVORS, alphas=(0.3, 0.4), name="survivor")
        compare(layer, plain, torch.randn(shape), torch.randn(shape))
        before = held(daemon)
        bytes_before = daemon.status()["sessions"][0]["held_bytes"]
        with ended(start(daemon, kernels, point)) as trainer:
            while trainer.poll() is None:
                compare(layer, plain, torch.randn(shape), torch.randn(shape))
            assert trainer.returncode == -signal.SIGKILL, trainer.stderr.read()
        for _ in range(3):
            compare(layer, plain, torch.randn(shape), torch.randn(shape))
        free(daemon, before, SURVIVORS)
        assert daemon.status()["sessions"][0]["held_bytes"] == bytes_before
        compare(layer, plain, torch.randn(shape), torch.randn(shape))
        assert layer.connected and layer.seeds[0].stats()["failures"]["runtime"] == 0


@pytest.mark.skipif(not FAILPOINTS.exists(), reason=f"no daemon with failpoints: {BUILD}")
@pytest.mark.parametrize("point", points())
def test_a_trainer_that_is_killed_while_the_daemon_is_at_a_point_leaves_nothing_behind(settle, kernels, point):
    # At the second time, so that there is something to be freed.
    daemon = settle(Dying, KASMINA_STOP_AT=f"{point}:2")
    before = held(daemon)
    with ended(start(daemon, kernels)) as trainer:
        settled(lambda: daemon.stopped() or trainer.poll() is not None)
        assert trainer.poll() is None, trainer.stderr.read()
        trainer.send_signal(signal.SIGKILL)
        trainer.wait(20)
    daemon.process.send_signal(signal.SIGCONT)
    free(daemon, before)
    with daemon.connect() as client:
        layer, plain, shape = pair(client, SURVIVORS, alphas=(0.3, 0.4), name="survivor")
        for _ in range(3):
            compare(layer, plain, torch.randn(shape), torch.randn(shape))
    free(daemon, before)
    assert "panicked" not in daemon.text()
