"""How long a training step takes while a part of the kernel supply is broken, beside the same step without a fault.

In both halves cold kernels are asked for in the background all the time; in turns, so that both see the same
machine. Writes the table of docs/reliability.md. Full disks need root, the calendar libfaketime: where these are missing
the row says so.
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

import pytest  # noqa: E402
import kasmina  # noqa: E402  before PyTorch, as in bench.py
import torch  # noqa: E402

from e2e import modules  # noqa: E402
from e2e.conftest import Daemon  # noqa: E402
from e2e.faults import ALONE, fill, small_disk  # noqa: E402
from e2e.modules import TOKENS  # noqa: E402
from e2e.proxy import FAULTS, Proxy  # noqa: E402
from e2e.servers import S3, Postgres, Redis, Urza  # noqa: E402
from e2e.test_clock import YEAR, Calendar  # noqa: E402
from e2e.trainer import Trainer  # noqa: E402
from harness import write  # noqa: E402

STEPS, TURNS, COLD = 400, 4, 400
TABLE = []


class Asker(threading.Thread):
    """Asks for one cold kernel after the other on a session of its own, until it is told to stop."""

    def __init__(self, daemon):
        super().__init__(daemon=True)
        self.kasminad, self.stop, self.asked, self.refused = daemon, threading.Event(), 0, 0
        self.failed = None

    def run(self):
        try:
            self.ask()
        except Exception as error:
            self.failed = error

    def ask(self):
        with self.kasminad.connect() as client:
            layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="asks", seeds=1)
            for n in itertools.cycle(range(COLD)):
                if self.stop.is_set():
                    return
                if not layer.connected:
                    raise RuntimeError("the session has ended")
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


def measure(kernels, row, breaks, heals, settings="", origin=None, environment=None):
    """Prints a row: steps in turns without the fault and with it, on a daemon of the row's own."""
    folder = Path(tempfile.mkdtemp(prefix="kasmina-"))
    directory = folder / "origin"
    shutil.copytree(kernels, directory)
    # A cache of few entries, so that what is asked for is cold.
    settings = "[cache]\nmax_entries = 4\n" + settings
    daemon = Daemon(folder, directory, settings=settings, origin=origin, environment=environment)
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
            assert asker.failed is None, f"nobody asked for cold kernels: {asker.failed!r}"
        say(f"| {row} | {percentiles(calm)} | {percentiles(broken)} | {asker.asked} | {asker.refused} |")
    finally:
        daemon.close()


def say(line):
    """Notes a line of the table."""
    TABLE.append(line)
    print(line, flush=True)


@contextlib.contextmanager
def possible(row):
    """A row that not every machine can measure."""
    try:
        yield
    except (pytest.skip.Exception, StopIteration, OSError) as error:
        say(f"| {row} | not measured: {error} | | | | | |")


def call(action, *arguments):
    """An action of a server's as one on a daemon."""
    return lambda _: action(*arguments)


def local(kernels):
    """What breaks on the daemon's own machine."""
    locks = {}

    def lock(daemon):
        locks[daemon] = sqlite3.connect(daemon.folder / "state" / "cache.sqlite", isolation_level=None, timeout=30)
        locks[daemon].execute("BEGIN IMMEDIATE")

    def unlock(daemon):
        locks.pop(daemon).close()

    def spoil(daemon):
        with sqlite3.connect(daemon.folder / "state" / "cache.sqlite", timeout=30) as connection:
            connection.execute("UPDATE artifacts SET bytes = zeroblob(length(bytes))")

    def hide(daemon):
        (daemon.folder / "origin").rename(daemon.folder / "away")

    def show(daemon):
        (daemon.folder / "away").rename(daemon.folder / "origin")

    measure(kernels, "origin away", hide, show)
    measure(kernels, "SQLite locked by another process", lock, unlock)
    measure(kernels, "every copy in SQLite corrupt", spoil, lambda _: None)
    with tempfile.TemporaryDirectory(prefix="kasmina-") as folder:
        row = "disk full under SQLite"
        with possible(row), small_disk(Path(folder) / "disk", "400k") as disk:
            settings = f'[cache.sqlite]\npath = "{disk}/cache.sqlite"\n'
            measure(kernels, row, call(fill, disk), call((disk / "filler").unlink), settings)
        row = "calendar a year ahead"
        with possible(row):
            calendar = Calendar(Path(folder))
            jumps = call(calendar.set, YEAR), call(calendar.set, 0)
            measure(kernels, row, *jumps, environment=calendar.environment)


def tiers(kernels):
    """What breaks in Redis and PostgreSQL, and on the way to them."""
    for kind, name in ((Redis, "Redis"), (Postgres, "PostgreSQL")):
        again = kind.restart if kind is Postgres else kind.start
        whole = [
            ("killed", kind.kill, again),
            ("paused", kind.pause, kind.resume),
            ("restarted empty", kind.restart_empty, lambda _: None),
            ("refusing the password", kind.refuse_auth, kind.restart_empty),
        ]
        for fault, breaks, heals in whole:
            with serving(kind()) as server:
                faults = call(breaks, server), call(heals, server)
                measure(kernels, f"{name} {fault}", *faults, server.settings() + ALONE)
        for fault in ("latency", "reset", "truncate", "corrupt", "drip", "hang", "refuse"):
            with serving(kind()) as server, Proxy(("127.0.0.1", server.port)) as proxy:
                faults = call(proxy.set, fault, 0.02, 40), call(proxy.set)
                measure(kernels, f"network before {name}: {fault}", *faults, server.settings(proxy.port) + ALONE)
    with serving(Redis()) as server:
        settings = server.settings() + ALONE
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        limits = [call(server.ask, "CONFIG", "SET", "maxmemory", limit) for limit in ("1", "0")]
        measure(kernels, "Redis out of memory", *limits, settings)
    row = "disk full under PostgreSQL"
    with possible(row), serving(Postgres()) as server, small_disk(server.folder / "disk", "1m") as disk:
        server.keep_tables_in(disk)
        faults = call(fill, disk), call((disk / "filler").unlink)
        measure(kernels, row, *faults, server.settings() + ALONE)


def origins(kernels):
    """What breaks in Urza and S3, and on the way to them."""
    for fault, breaks, heals in [("killed", Urza.kill, Urza.start), ("paused", Urza.pause, Urza.resume)]:
        with serving(Urza(kernels)) as urza:
            measure(kernels, f"Urza {fault}", call(breaks, urza), call(heals, urza), ALONE, urza.settings())
    for fault in FAULTS:
        with serving(Urza(kernels)) as urza, Proxy(("127.0.0.1", urza.port)) as proxy:
            faults = call(proxy.set, fault, 0.02, 600), call(proxy.set)
            measure(kernels, f"Urza and blobs: {fault}", *faults, ALONE, urza.settings(proxy.port))
    with tempfile.TemporaryDirectory(prefix="kasmina-catalogue-") as folder, serving(S3()) as s3:
        for artifact in kernels.glob("*.pt2"):
            shutil.copy(artifact, s3.bucket)
            entry = {"id": artifact.stem, "status": "validated", "kernel_binary_ref": f"s3://kernels/{artifact.name}"}
            (Path(folder) / f"{artifact.stem}.json").write_text(json.dumps(entry))
        with serving(Urza(folder)) as urza, Proxy(("127.0.0.1", s3.port)) as proxy:
            origin = urza.settings() + s3.settings(proxy.port)
            for fault, breaks, heals in [("killed", s3.kill, s3.start), ("paused", s3.pause, s3.resume)]:
                measure(kernels, f"S3 {fault}", call(breaks), call(heals), ALONE, origin)
            for fault in FAULTS:
                faults = call(proxy.set, fault, 0.02, 600), call(proxy.set)
                measure(kernels, f"S3: {fault}", *faults, ALONE, origin)


@contextlib.contextmanager
def serving(server):
    """A server while it is needed."""
    server.start()
    try:
        yield server
    finally:
        server.resume()
        server.close()


def main():
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        kernels = Path(folder)
        modules.export(modules.twin("mlp"), TOKENS, kernels / "mlp.pt2")
        for n in range(COLD):
            shutil.copy(kernels / "mlp.pt2", kernels / f"cold-{n}.pt2")
        say("| fault | step without, ms p50 | p99 | with, ms p50 | p99 | cold kernels asked for | refused |")
        say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for scene in (local, tiers, origins):
            scene(kernels)
    write("reliability.md", "faults", "\n".join(TABLE))


if __name__ == "__main__":
    main()
