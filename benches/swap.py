"""How long a training step takes while kernels are swapped without end, beside the same step without swaps.

Each swap is of a kernel that is not in memory: it is fetched, checked, judged, tried and planned beside the steps. In
turns, so that both see the same machine. `python benches/swap.py` prints the table.
"""

import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python" / "tests"), str(ROOT / "python")]
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from e2e import modules  # noqa: E402
from e2e.conftest import Daemon  # noqa: E402
from e2e.modules import TOKENS  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402

STEPS, TURNS, COLD = 1000, 5, 64


class Swapper(threading.Thread):
    """Swaps a seed's kernel as long as it is told to, the next as soon as the last is live."""

    def __init__(self, seed):
        super().__init__(daemon=True)
        self.seed, self.on, self.stop, self.swaps = seed, threading.Event(), threading.Event(), 0

    def run(self):
        for n in itertools.cycle(range(COLD)):
            self.on.wait()
            if self.stop.is_set():
                return
            self.seed.graft(f"cold-{n}", alpha=0.5, wait=False)
            while self.seed.loading is not None and not self.stop.is_set():
                time.sleep(0.001)
            if self.seed.load_error is not None:
                raise self.seed.load_error
            self.swaps += 1


def steps(layer, optimizer):
    """Milliseconds of so many steps."""
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        optimizer.zero_grad()
        (layer(torch.randn(TOKENS)) - 1).square().mean().backward()
        optimizer.step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def summary(times):
    times = sorted(times)
    return {"p50_ms": times[len(times) // 2], "p99_ms": times[len(times) * 99 // 100], "max_ms": times[-1]}


def swap():
    """Step times without swaps and with them, and how many there were."""
    folder = Path(tempfile.mkdtemp(prefix="kasmina-"))
    origin = folder / "origin"
    origin.mkdir()
    modules.export(modules.twin("mlp"), TOKENS, origin / "cold-0.pt2")
    for n in range(1, COLD):
        shutil.copy(origin / "cold-0.pt2", origin / f"cold-{n}.pt2")
    # A memory of few entries, so that what is asked for is cold.
    daemon = Daemon(folder, origin, settings="[cache]\nmax_entries = 4\n[cache.sqlite]\nenabled = false\n")
    try:
        with daemon.connect() as client:
            layer = SeededLayer(nn.Linear(8, 8), client, "swapped", 1, input_shape=TOKENS[1:])
            layer.seeds[0].graft("cold-0", alpha=0.5)
            optimizer = torch.optim.SGD(layer.host.parameters(), lr=0.01)
            steps(layer, optimizer)
            plans = daemon.status()["totals"]["pass_plans"]
            swapper = Swapper(layer.seeds[0])
            swapper.start()
            calm, busy = [], []
            for _ in range(TURNS):
                calm += steps(layer, optimizer)
                swapper.on.set()
                busy += steps(layer, optimizer)
                swapper.on.clear()
                # The one that is under way ends before the calm half begins.
                steps(layer, optimizer)
            assert swapper.is_alive(), "a swap failed"
            swapper.stop.set(), swapper.on.set()
            plans = daemon.status()["totals"]["pass_plans"] - plans
        return {"calm": summary(calm), "busy": summary(busy), "swaps": swapper.swaps, "steps": len(busy), "plans": plans}
    finally:
        daemon.close()


def table(measured):
    """Lines for docs/performance.md."""
    row = lambda what, times: f"| {what} | " + " | ".join(f"{times[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms")) + " |"
    return [
        "| training steps | ms p50 | p99 | longest |",
        "| --- | ---: | ---: | ---: |",
        row("without swaps", measured["calm"]),
        row(
            f"with {measured['swaps']} hot swaps in {measured['steps']:,} steps, {measured['plans']} plans made in passes",
            measured["busy"],
        ),
    ]


if __name__ == "__main__":
    print("\n".join(table(swap())))
