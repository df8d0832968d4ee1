"""What the measurements in this folder share: a daemon of their own, times taken in turns, the machine."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple

import torch

import kasmina


#: How long either side of a measured daemon looks for the next message at most, where nothing else is said: its default.
SPIN_US = 200


class Times(NamedTuple):
    """Of one side, in milliseconds: the median, and how far the middle half of all times is spread, as a share of it."""

    median: float
    spread: float


@contextmanager
def daemon(binary: Path, kernels: Path, threads: int, spin_us: int, device: str = 'kind = "cpu"\n'):
    """A kasminad over a folder of kernels, on the CPU or on the device of some settings. Gives the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as folder:
        state = Path(folder)
        config = state / "kasmina.toml"
        config.write_text(
            f'[daemon]\nsocket = "{state}/kasmina.sock"\ncontrol_socket = "{state}/control.sock"\n'
            f'state_dir = "{state}"\n'
            f'[device]\nthreads = {threads}\n{device}'
            f'[origin]\nkind = "directory"\npath = "{kernels}"\n'
            f'[data_plane]\nspin_us = {spin_us}\n[log]\nlevel = "warn"\n'
        )
        began = time.perf_counter()
        process = subprocess.Popen([binary, "--config", config])
        try:
            path = str(state / "kasmina.sock")
            while True:
                try:
                    kasmina.connect(path, arena_bytes=1 << 20).close()
                    break
                except kasmina.SessionError:
                    if process.poll() is not None or time.perf_counter() - began > 120:
                        raise
                    time.sleep(0.002)
            yield path, time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(30)


def sample(function: Callable[[], object], count: int) -> list[float]:
    """Times of single calls, in milliseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def taking_turns(sides: list[Callable[[], object]], budget_s: float) -> list[Times]:
    """What each side takes, from blocks of calls that alternate until the time is up. The first call of a block counts for
    nobody: the threads of the side before may still be looking for work."""
    warm = min(statistics.median(sample(side, 3)) for side in sides)
    block = max(3, min(200, int(20 / max(warm, 1e-3))))
    times: list[list[float]] = [[] for _ in sides]
    until = time.perf_counter() + budget_s
    while time.perf_counter() < until or len(times[0]) < 3 * block:
        for side, into in zip(sides, times):
            side()
            into += sample(side, block)
    return [summed_up(side) for side in times]


def summed_up(times: list[float]) -> Times:
    lower, median, upper = statistics.quantiles(times, n=4)
    return Times(median, (upper - lower) / median)


def percentiles(times: list[float]) -> dict[str, float]:
    """Of times in microseconds."""
    times = sorted(times)
    return {"p50_us": round(times[len(times) // 2], 1), "p99_us": round(times[len(times) * 99 // 100], 1)}


def machine() -> dict[str, object]:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


class Limits(NamedTuple):
    """What PyTorch's own largest operations get out of the machine: the best of several runs."""

    gflops: float
    gb_per_s: float


def limits() -> Limits:
    """A product of matrices of 2048 by 2048 in float32, and a copy of 256 MiB, which is read once and written once."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    far, near = torch.zeros(1 << 26), torch.zeros(1 << 26)
    product_ms = min(sample(lambda: torch.mm(a, b), 10))
    copy_ms = min(sample(lambda: near.copy_(far), 10))
    return Limits(2 * 2048**3 / product_ms / 1e6, 2 * far.nbytes / copy_ms / 1e6)


def write(page: str, part: str, text: str) -> None:
    """Puts a text between the two marks of a part of a page of the documentation."""
    path = Path(__file__).resolve().parent.parent / "docs" / page
    begin, end = f"<!-- {part}:begin -->", f"<!-- {part}:end -->"
    before, rest = path.read_text().split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
