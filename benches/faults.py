"""How long a training step takes while a part of the kernel supply is broken, beside the same step without a fault.

In both halves cold kernels are asked for in the background all the time; in turns, so that both see the same
machine. Prints a table for docs/reliability.md.
"""

import contextlib
import itertools
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python" / "tests"), str(ROOT / "python")]
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))

import torch  # noqa: E402

import kasmina  # noqa: E402
from e2e import modules  # noqa: E402
from e2e.conftest import Daemon  # noqa: E402
from e2e.modules import TOKENS  # noqa: E402
from e2e.servers import S3, Postgres, Redis, Urza  # noqa: E402
from e2e.trainer import Trainer  # noqa: E402

STEPS, TURNS, COLD = 150, 4, 400
ALONE = "[cache.sqlite]\nenabled = false\n"


class Asker(threading.Thread):
    """Asks for one cold kernel after the other on a session of its own, until it is told to stop."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.kasminad, self.stop, self.asked, self.refused = daemon, threading.Event(), 0, 0

    def run(self):
        with contextlib.suppress(kasmina.SessionError), self.kasminad.connect() as client:
            layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="asks", seeds=1)
            for n in itertools.cycle(range(COLD)):
                if self.stop.is_set():
                    return
                self.asked += 1
                try:
                    layer.seeds[0].graft(f"cold-{n}", input_shape=TOKENS[1:])
                    layer.seeds[0].prune()
                except kasmina.KasminaError:
                    self.refused += 1
                self.stop.wait(0.005)


def steps(trainer):
    """Milliseconds of so many steps."""
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        trainer.optimizer.zero_grad()
        (trainer.layer(torch.randn(TOKENS)) - 1).square().mean().backward()
        trainer.optimizer.step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def percentiles(times):
    times = sorted(times)
    return f"{times[len(times) // 2]:.2f} | {times[len(times) * 99 // 100]:.2f}"


def measure(kernels, row, settings, breaks, heals, server=None, origin=None):
    folder = Path(tempfile.mkdtemp(prefix="kasmina-"))
    directory = folder / "origin"
    shutil.copytree(kernels, directory)
    # A cache of few entries, so that what is asked for is cold.
    settings = settings.replace("[cache.", "[cache]\nmax_entries = 4\n[cache.", 1)
    daemon = Daemon(folder, directory, settings=settings, origin=origin)
    calm, broken = [], []
    try:
        with Trainer(daemon) as trainer:
            asker = Asker(daemon)
            asker.start()
            steps(trainer)
            for _ in range(TURNS):
                calm += steps(trainer)
                breaks(daemon)
                broken += steps(trainer)
                heals(daemon)
            asker.stop.set()
        counted = f"{asker.asked} | {asker.refused}"
        print(f"| {row} | {percentiles(calm)} | {percentiles(broken)} | {counted} |", flush=True)
    finally:
        daemon.kill()
        daemon.log.close()
        shutil.rmtree(folder, ignore_errors=True)
        if server is not None:
            server.resume()
            server.close()


def rows(kernels):
    locks = {}

    def lock(daemon):
        locks[daemon] = sqlite3.connect(daemon.folder / "state" / "cache.sqlite", isolation_level=None, timeout=30)
        locks[daemon].execute("BEGIN IMMEDIATE")

    def unlock(daemon):
        locks.pop(daemon).close()

    def hide(daemon):
        (daemon.folder / "origin").rename(daemon.folder / "away")

    def show(daemon):
        (daemon.folder / "away").rename(daemon.folder / "origin")

    disk = "[cache.sqlite]\nenabled = true\n"
    measure(kernels, "origin away", disk, hide, show)
    measure(kernels, "SQLite locked by another process", disk, lock, unlock)
    for kind in (Postgres, Redis):
        name = {Postgres: "PostgreSQL", Redis: "Redis"}[kind]
        restart = kind.restart if kind is Postgres else kind.start
        for fault, breaks, heals in [
            ("killed", lambda server: server.kill(), restart),
            ("paused", lambda server: server.pause(), lambda server: server.resume()),
        ]:
            server = kind()
            server.start()
            act = lambda action, server=server: lambda _: action(server)
            measure(kernels, f"{name} {fault}", server.settings() + ALONE, act(breaks), act(heals), server)


    urza = Urza(kernels).start()
    act = lambda action: lambda _: action()
    for fault, breaks, heals in [
        ("killed", urza.kill, urza.start),
        ("paused", urza.pause, urza.resume),
    ]:
        measure(kernels, f"Urza {fault}", ALONE, act(breaks), act(heals), origin=urza.settings())
    urza.resume()
    urza.close()
    s3, catalogue = S3(), kernels / "catalogue"
    catalogue.mkdir()
    for artifact in kernels.glob("*.pt2"):
        shutil.copy(artifact, s3.bucket)
        entry = {"id": artifact.stem, "status": "validated", "kernel_binary_ref": f"s3://kernels/{artifact.name}"}
        (catalogue / f"{artifact.stem}.json").write_text(json.dumps(entry))
    s3.start()
    urza = Urza(catalogue).start()
    origin = urza.settings() + s3.settings()
    measure(kernels, "S3 paused", ALONE, act(s3.pause), act(s3.resume), origin=origin)
    for server in (s3, urza):
        server.close()


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        kernels = Path(folder)
        modules.export(modules.twin("mlp"), TOKENS, kernels / "mlp.pt2")
        for n in range(COLD):
            shutil.copy(kernels / "mlp.pt2", kernels / f"cold-{n}.pt2")
        print("| fault | step without, ms p50 | p99 | with, ms p50 | p99 | cold kernels asked for | refused |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        rows(kernels)


if __name__ == "__main__":
    main()
