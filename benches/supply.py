"""How long a graft takes by where its kernel is found: the origin, a tier, or memory; and what of it is what.

A trainer asks a release build of kasminad for kernels it has never had, by `seed.graft`: from the request to a
kernel that is checked, judged, planned and live, with its parameters mapped in the trainer. The origin is
`kasmina urza` on the loopback, the servers are real.
"""

import contextlib
import os
import shutil
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

from e2e.conftest import Daemon, settled  # noqa: E402
from e2e.servers import Postgres, Redis, Urza  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402
from reading import modules  # noqa: E402

COUNT = 31
NO_DISK = "[cache.sqlite]\nenabled = false\n"
PARTS = ("look_up_us", "queue_us", "validate_us", "plan_us")
PARTS_MS = tuple(name.replace("_us", "_ms") for name in PARTS)


def kernels():
    """Kernels of about 1 MB: one of matrix products, and the convolution that reading is measured with."""
    yield "linear 1 MB", nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 512)), torch.randn(8, 512)
    yield next(modules())


def export(folder, module, example):
    """So many kernels of different names and the same bytes."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "cold-0.pt2")
    for n in range(1, COUNT + 1):
        shutil.copy(folder / "cold-0.pt2", folder / f"cold-{n}.pt2")


def grafts(daemon, shape):
    """Milliseconds of each graft, by the trainer's clock, and the parts of it by the daemon's."""
    times, parts = [], {name: [] for name in PARTS}
    with daemon.connect() as client, daemon.operator() as operator:
        seed = SeededLayer(nn.Identity(), client, name="supply", seeds=1).seeds[0]
        for n in range(COUNT + 1):
            start = time.perf_counter()
            seed.graft(f"cold-{n}", input_shape=shape)
            elapsed = (time.perf_counter() - start) * 1e3
            seed.prune()
            # The first one pays for the connections.
            if n:
                times.append(elapsed)
                last = operator.why(f"cold-{n}")["loads"][0]
                for name in PARTS:
                    parts[name].append(last[name] / 1e3)
    return times, parts


def row(kernel, place, daemon, shape):
    times, parts = grafts(daemon, shape)
    ordered = sorted(times)
    return {
        "kernel": kernel,
        "place": place,
        "p50_ms": statistics.median(times),
        "p99_ms": ordered[len(ordered) * 99 // 100],
        **{name: statistics.median(parts[us]) for name, us in zip(PARTS_MS, PARTS, strict=True)},
    }


@contextlib.contextmanager
def running(origin, settings):
    with tempfile.TemporaryDirectory(prefix="kasmina-supply-") as folder:
        daemon = Daemon(folder, None, settings=settings.replace('"debug"', '"warn"'), origin=origin)
        try:
            yield daemon
        finally:
            daemon.kill()
            daemon.log.close()


def forget(daemon):
    with daemon.operator() as operator:
        settled(lambda: operator.clear() is not None and not operator.cache()["kernels"])


def holds_all(daemon, tier):
    def entries():
        with daemon.operator() as operator:
            return next(each["entries"] for each in operator.cache()["tiers"] if each["name"] == tier)

    settled(lambda: entries() > COUNT)


def supply():
    """A row for each kernel and place."""
    rows = []
    for kernel, module, example in kernels():
        shape = example.shape[1:]
        with tempfile.TemporaryDirectory(prefix="kasmina-supply-") as folder:
            export(Path(folder), module, example)
            urza = Urza(Path(folder)).start()
            origin = urza.settings(timeout="5s")
            try:
                for tried in (True, False):
                    trial = f"[validator]\ntrial = {str(tried).lower()}\n"
                    with running(origin, NO_DISK + trial) as daemon:
                        rows.append(row(kernel, "origin" if tried else "origin, no trial", daemon, shape))
                        if tried:
                            # Nothing is loaded: the parts would be those of the loads before.
                            rows.append(row(kernel, "memory (L1)", daemon, shape) | dict.fromkeys(PARTS_MS))
                for place, tier, kind in [
                    ("Redis (L2)", "redis", Redis),
                    ("SQLite (L3)", "sqlite", None),
                    ("PostgreSQL (L3)", "postgres", Postgres),
                ]:
                    server = kind() if kind else None
                    if server:
                        server.start()
                    settings = server.settings() + NO_DISK if server else ""
                    try:
                        with running(origin, settings) as daemon:
                            grafts(daemon, shape)
                            holds_all(daemon, tier)
                            forget(daemon)
                            rows.append(row(kernel, place, daemon, shape))
                    finally:
                        if server:
                            server.close()
            finally:
                urza.close()
    return rows


def cycles(count=10_000):
    """What so many grafts and prunes leave behind in the daemon: four times as many kernels as there is room for, so
    that nearly all of them are read from disk, planned and put out again."""
    room = 8
    with tempfile.TemporaryDirectory(prefix="kasmina-supply-") as folder:
        export(Path(folder), nn.Linear(64, 64), torch.randn(2, 64))
        settings = f"[cache]\nmax_entries = {room}\n[validator]\ntrial = false\n"
        with running(f'path = "{folder}"\n', settings) as daemon, daemon.connect() as client:
            seed = SeededLayer(nn.Identity(), client, name="cycles", seeds=1).seeds[0]

            def look():
                return daemon.status()["resident_bytes"], daemon.descriptors()

            def load(times):
                start = time.perf_counter()
                for n in range(times):
                    seed.graft(f"cold-{n % (4 * room)}", input_shape=(64,))
                    seed.prune()
                return (time.perf_counter() - start) * 1e3 / times

            load(count // 10)
            before = look()
            cycle_ms = load(count)
            after = look()
            return {
                "cycles": count,
                "cycle_ms": cycle_ms,
                "resident_bytes_before": before[0],
                "resident_bytes_after": after[0],
                "descriptors_before": before[1],
                "descriptors_after": after[1],
            }


def table(rows):
    figure = lambda value: "–" if value is None else f"{value:.2f}"
    return [
        "| kernel of 1 MB | found in | graft ms p50 | p99 | look-up | queue | judge | plan |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {each['kernel'].removesuffix(' 1 MB')} | {each['place']} | "
            + " | ".join(figure(each[name]) for name in ("p50_ms", "p99_ms", *PARTS_MS))
            + " |"
            for each in rows
        ),
    ]


def cycles_row(counted):
    mebibytes = lambda when: f"{counted[f'resident_bytes_{when}'] / 2**20:.1f}"
    descriptors = f"{counted['descriptors_before']} and {counted['descriptors_after']} descriptors"
    return (
        f"| the daemon before and after {counted['cycles']:,} grafts and prunes | {mebibytes('before')} and "
        f"{mebibytes('after')} MiB resident, {descriptors}; {counted['cycle_ms']:.1f} ms each |"
    )


if __name__ == "__main__":
    print("\n".join(table(supply())))
    print(cycles_row(cycles()))
