"""How long a death is felt: the daemon's by its trainer, and a trainer's by the daemon.

Three times, each the median of several, with one layer of one seed and with 16 layers of four:

- from the moment the daemon that was started again says READY to the end of the first training step that ran every
  seed there,
- the training step in which the daemon is killed, which goes on with the hosts or is lost, beside a step without it,
- from SIGKILL of a trainer that holds a ticket of each layer to the moment its session, its bytes and its descriptors
  are gone from the daemon.

Writes the table of docs/performance.md.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python" / "tests"), str(ROOT / "python")]
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))

import kasmina  # noqa: E402  before PyTorch, as in bench.py
import torch  # noqa: E402
from torch import nn  # noqa: E402

from e2e import modules  # noqa: E402
from e2e.conftest import Daemon, settled  # noqa: E402
from harness import write  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402

COUNT, WIDTH, BATCH = 15, 64, 32
SHAPES = ((1, 1), (16, 4))
REACH_MS, AWAY_S = 1000.0, 1.5


class Notified(Daemon):
    """A daemon whose READY is heard to the microsecond."""

    def __init__(self, folder, kernels):
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(Path(folder) / "notify.sock"))
        self.ready_at = 0.0
        environment = {"NOTIFY_SOCKET": str(Path(folder) / "notify.sock")}
        super().__init__(folder, kernels, environment=environment, settings='[limits]\nmax_layers_per_session = 64\n')

    def start(self):
        process = subprocess.Popen(self.command(), stderr=self.log, env=self.environment)
        while b"READY=1" not in self.heard.recv(4096):
            pass
        self.ready_at = time.perf_counter()
        return process


class Training:
    """Layers in a row, all their seeds blended."""

    def __init__(self, client, layers, seeds):
        self.model = nn.Sequential()
        for n in range(layers):
            layer = SeededLayer(nn.Linear(WIDTH, WIDTH), client, f"layer-{n}", seeds=seeds, input_shape=(WIDTH,))
            for seed in layer.seeds:
                seed.graft("wide", alpha=0.5 / seeds)
            self.model.append(layer)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)

    def step(self):
        """Milliseconds of a step, and whether it ran every seed."""
        x = torch.randn(BATCH, WIDTH)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        try:
            self.model(x).square().mean().backward()
        except kasmina.ConnectionLost:
            return (time.perf_counter() - start) * 1e3, False
        self.optimizer.step()
        took = (time.perf_counter() - start) * 1e3
        there = all(layer.connected and not layer._alone for layer in self.model)
        return took, there and all(seed.present for layer in self.model for seed in layer.seeds)


def kernels(folder):
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    modules.export(module, (BATCH, WIDTH), Path(folder) / "wide.pt2")


def deaths_of_daemons(daemon, layers, seeds):
    """Milliseconds of steps without a death and with one, and from READY to the first whole step."""
    calm, dying, back = [], [], []
    with daemon.connect() as client:
        training = Training(client, layers, seeds)
        for n in range(COUNT):
            calm += [training.step()[0] for _ in range(20)]
            # Anywhere within a step: the pause is another part of it each time.
            pause = statistics.median(calm) / 1e3 * (1 + n / COUNT)
            killer = threading.Thread(target=lambda: (time.sleep(pause), daemon.process.kill()))
            killer.start()
            took, is_whole = training.step()
            while is_whole:
                took, is_whole = training.step()
            dying.append(took)
            killer.join()
            daemon.process.wait()
            # Long enough for the client to look for a daemon no more often than it ever does.
            until = time.perf_counter() + AWAY_S
            while time.perf_counter() < until:
                training.step()
            starter = threading.Thread(target=lambda: setattr(daemon, "process", daemon.start()))
            starter.start()
            while not training.step()[1]:
                pass
            now = time.perf_counter()
            starter.join()
            back.append((now - daemon.ready_at) * 1e3)
    settled(lambda: not daemon.status()["sessions"])
    return calm, dying, back


TRAINER = """
import sys
sys.path[:0] = {path!r}
import recovery, torch
training = recovery.Training(recovery.kasmina.connect({socket!r}), {layers}, {seeds})
training.step()
kept = training.model(torch.randn(recovery.BATCH, recovery.WIDTH))
print("ready", flush=True)
sys.stdin.read()
"""


def deaths_of_trainers(daemon, layers, seeds):
    """Milliseconds until the daemon has nothing more of a trainer that was killed, and the bytes that it held."""
    times, held = [], 0
    script = TRAINER.format(path=[str(ROOT / "benches"), *sys.path[:2]], socket=str(daemon.socket), layers=layers, seeds=seeds)
    before = None
    with daemon.operator() as operator:
        # The first makes what is made once.
        for n in range(COUNT + 1):
            settled(lambda: not operator.status()["sessions"])
            before = daemon.descriptors() if n == 1 else before
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            with subprocess.Popen([sys.executable, "-c", script], **pipes) as trainer:
                assert trainer.stdout.readline() == "ready\n"
                (session,) = operator.status()["sessions"]
                held = session["held_bytes"]
                assert session["tickets"] == layers and daemon.descriptors() > (before or 0)
                start = time.perf_counter()
                trainer.send_signal(signal.SIGKILL)
                while operator.status()["sessions"] or (n and daemon.descriptors() > before):
                    pass
                if n:
                    times.append((time.perf_counter() - start) * 1e3)
    return times, held


def recovery(count=None):
    """A row for each number of layers and seeds."""
    global COUNT
    COUNT = count or COUNT
    rows = []
    with tempfile.TemporaryDirectory(prefix="kasmina-recovery-") as folder:
        (Path(folder) / "kernels").mkdir()
        kernels(Path(folder) / "kernels")
        for layers, seeds in SHAPES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                daemon = Notified(tempfile.mkdtemp(prefix="kasmina-"), Path(folder) / "kernels")
                try:
                    calm, dying, back = deaths_of_daemons(daemon, layers, seeds)
                    freed, held = deaths_of_trainers(daemon, layers, seeds)
                finally:
                    daemon.close()
                    daemon.heard.close()
            rows.append({"layers": layers, "seeds": seeds, "calm": calm, "dying": dying, "back": back, "freed": freed, "held": held})
    return rows


def table(rows):
    """As docs/performance.md has it."""

    def cells(times):
        return f"{statistics.median(times):.1f} | {max(times):.1f}"

    lines = [
        "| what | layers × seeds | ms, median | worst | reach |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for row in rows:
        size = f"{row['layers']} × {row['seeds']}"
        lines += [
            f"| READY to the first step with every seed | {size} | {cells(row['back'])} | ≤ {REACH_MS:.0f} |",
            f"| the step in which the daemon dies | {size} | {cells(row['dying'])} | at once |",
            f"| a step without a death | {size} | {cells(row['calm'])} | |",
            f"| SIGKILL of a trainer to all it held free ({row['held'] / 2**20:.1f} MiB) | {size} "
            f"| {cells(row['freed'])} | ≤ {REACH_MS:.0f} |",
        ]
    return lines


def conditions():
    """How it was measured."""
    build = "Release" if "release" in os.environ["KASMINAD"] else "Debug"
    return f"{build} build, {os.cpu_count()} processors, {COUNT} deaths of each kind."


def document(rows):
    """Puts the table into docs/performance.md."""
    write("performance.md", "recovery", "\n".join([conditions(), "", *table(rows)]))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--count", type=int, default=COUNT, help="deaths of each kind")
    options = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = recovery(options.count)
    print("\n".join(table(rows)))
    document(rows)


if __name__ == "__main__":
    main()
