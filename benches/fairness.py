"""What a noisy user costs a quiet one: the quiet one's passes alone, beside a neighbour, and beside one without turns.

The neighbour keeps eight sessions busy with eight large passes each. The quiet trainer runs one small pass after the
other, forward only. With turns (the default) a place that becomes free goes to the user who has used the least time;
without (`engine.concurrent_passes` above all that could ever run) everybody computes at once and the system's
scheduler decides.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python" / "tests"), str(ROOT / "python"), str(ROOT / "benches")]
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from e2e import modules  # noqa: E402
from e2e.conftest import Daemon  # noqa: E402
from e2e.test_many_trainers import Trainers  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402

NOISY_UID = 4001
ROUNDS, PASSES = 5, 400
WITHOUT_TURNS = "1024"


@contextlib.contextmanager
def running(kernels, places=None):
    environment = {"KASMINA__DAEMON__SOCKET_MODE": "0666", "KASMINA__LOG__LEVEL": "warn"}
    if places:
        environment["KASMINA__ENGINE__CONCURRENT_PASSES"] = places
    folder = tempfile.mkdtemp(prefix="kasmina-fairness-")
    os.chmod(folder, 0o755)
    daemon = Daemon(folder, kernels, environment=environment)
    try:
        yield daemon
    finally:
        daemon.close()


@contextlib.contextmanager
def noise(daemon):
    uid = NOISY_UID if os.getuid() == 0 else None
    flood = Trainers(daemon, "flood", trainers=8, **({} if uid is None else {"uid": uid}))
    flood.begun()
    try:
        yield
    finally:
        flood.result()


def passes(daemon):
    """Microseconds of the quiet trainer's passes."""
    times = []
    with daemon.connect() as client, torch.no_grad():
        layer = SeededLayer(nn.Identity(), client, "quiet", 1, "residual", modules.TOKENS[1:])
        layer.seeds[0].graft("mlp", alpha=0.5)
        x = torch.randn(modules.TOKENS)
        for n in range(PASSES + 20):
            start = time.perf_counter()
            layer(x)
            if n >= 20:
                times.append((time.perf_counter() - start) * 1e6)
    return times


def figures(times):
    ordered = sorted(times)
    return {"p50_us": statistics.median(ordered), "p99_us": ordered[len(ordered) * 99 // 100]}


def fairness():
    """Figures by name, the rounds of all taken in turns."""
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        os.chmod(folder, 0o755)
        modules.write(Path(folder))
        alone, beside, without = [], [], []
        for _ in range(ROUNDS):
            with running(folder) as daemon:
                alone += passes(daemon)
                with noise(daemon):
                    beside += passes(daemon)
            with running(folder, WITHOUT_TURNS) as daemon, noise(daemon):
                without += passes(daemon)
    return {"alone": figures(alone), "turns": figures(beside), "no_turns": figures(without)}


def table(fair, turns):
    names = {"alone": "alone", "turns": "beside a noisy user, taking turns", "no_turns": "the same without turns"}
    return [
        "| a quiet trainer's pass | median µs | p99 µs |",
        "| --- | ---: | ---: |",
        *(f"| {text} | {fair[name]['p50_us']:.0f} | {fair[name]['p99_us']:.0f} |" for name, text in names.items()),
        "",
        f"A turn while there is a place for everybody: {turns['turn_1_ns']:.0f} ns, of which the two readings of the "
        f"clock are {turns['clock_1_ns']:.0f} ns (two threads {turns['turn_2_ns']:.0f} ns; a mutex that nobody else "
        f"wants {turns['mutex_1_ns']:.0f} ns, that one other thread wants {turns['mutex_2_ns']:.0f} ns).",
    ]


if __name__ == "__main__":
    from bench import rust_bench

    print("\n".join(table(fairness(), rust_bench("turns"))))
