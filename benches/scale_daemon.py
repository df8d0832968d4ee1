"""What a daemon that computes nothing costs: memory for dormant seeds, and wake-ups while it is idle."""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Iterator, NamedTuple

import torch
from torch import nn

from e2e.conftest import Daemon
from kasmina.torch import SeededLayer
from reference_kernels import Case

WIDTH, LIVE = 64, 8
#: How often the supervisor looks after its actors: as where nothing is said, and not while anybody measures.
WATCHES = ("1s", "1h")


class Footprint(NamedTuple):
    """What the system says of a daemon."""

    resident_kib: int
    threads: int
    descriptors: int


@contextlib.contextmanager
def running(kernels: Path, **settings: str) -> Iterator[Daemon]:
    environment = {"KASMINA__LOG__LEVEL": "warn"} | {f"KASMINA__{name.upper()}": value for name, value in settings.items()}
    daemon = Daemon(tempfile.mkdtemp(prefix="kasmina-scale-"), kernels, environment=environment)
    try:
        yield daemon
    finally:
        daemon.close()


def status(task: Path) -> dict[str, str]:
    """The lines of a task's `status`, by their names."""
    return dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())


def footprint(daemon: Daemon) -> Footprint:
    said = status(Path(f"/proc/{daemon.process.pid}"))
    return Footprint(int(said["VmRSS"].split()[0]), int(said["Threads"]), daemon.descriptors())


def dormant(kernels: Path, totals: list[int], in_layer: int) -> dict[int, Footprint]:
    """By the number of dormant seeds, of which as many are in a layer; one session holds them all."""
    held = {}
    # SQLite's threads come when they are wanted, and are no seed's either.
    settings = {"limits__max_layers_per_session": str(max(totals) + 1), "cache__sqlite__enabled": "false"}
    with running(kernels, **settings) as daemon, daemon.connect() as client:
        # What the first layer brings about once is no seed's.
        layers, seeds = [client.open_layer("first", in_layer, input_shape=(WIDTH,))], 0
        for total in totals:
            while seeds < total:
                count = min(in_layer, total - seeds)
                layers.append(client.open_layer(f"layer-{len(layers)}", count, input_shape=(WIDTH,)))
                seeds += count
            held[total] = footprint(daemon)
    return held


def switches(daemon: Daemon) -> dict[str, int]:
    """How often each thread has gone to sleep, by its number and name: once for each time that it was woken."""
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    said = {task.name: status(task) for task in tasks}
    return {f"{number} {one['Name'].strip()}": int(one["voluntary_ctxt_switches"]) for number, one in said.items()}


def idle(kernels: Path, case: Case, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """Wake-ups each second by thread, without a session and with one that is open and idle, by how often the daemon looks
    after itself. All of them at once: nobody waits for a processor."""
    with contextlib.ExitStack() as stack:
        daemons = {}
        for watch in WATCHES:
            for name in ("no session", "an idle session"):
                daemon = stack.enter_context(running(kernels, daemon__watch_interval=watch))
                daemons[name, watch] = daemon
                if name != "no session":
                    client = stack.enter_context(daemon.connect())
                    layer = SeededLayer(nn.Identity(), client, "idle", LIVE, "residual", case.shape[1:])
                    for seed in layer.seeds:
                        seed.graft(case.kernel_id, alpha=1 / LIVE)
                    layer(torch.randn(case.shape)).sum()
                    assert not layer.last_failures, layer.last_failures
        # What was begun for them comes to its end.
        time.sleep(1.5)
        before = {key: switches(daemon) for key, daemon in daemons.items()}
        began = time.perf_counter()
        time.sleep(seconds)
        after = {key: switches(daemon) for key, daemon in daemons.items()}
        took = time.perf_counter() - began
    woken: dict[str, dict[str, dict[str, float]]] = {}
    for (name, watch), counts in after.items():
        since = before[name, watch]
        each = {thread: (count - since.get(thread, 0)) / took for thread, count in counts.items()}
        woken.setdefault(name, {})[watch] = each
    return woken
