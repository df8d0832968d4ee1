"""Many trainers of one daemon, each a process with a session of its own, of which some run passes and the others wait."""

import contextlib
import multiprocessing
import statistics
import time
from typing import Any, Iterator, NamedTuple

import torch
from torch import nn

import kasmina
from kasmina.torch import SeededLayer
from reference_kernels import Case

#: Long enough for every process to have heard of its turn.
NOTICE_S = 0.02


class Shares(NamedTuple):
    """Of so many sessions at once: passes each second, all together, and what a single one took, in milliseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float


def trainer(pipe: Any, path: str, cases: list[Case]) -> None:
    """Runs passes from one time to another, whenever it is told to, and tells when each began and ended."""
    torch.set_num_threads(1)
    with kasmina.connect(path, arena_bytes=16 << 20, reconnect=False) as client, torch.no_grad():
        layers = []
        for case in cases:
            layer = SeededLayer(nn.Identity(), client, case.name, 1, "residual", case.shape[1:]).eval()
            layer.seeds[0].graft(case.kernel_id, alpha=0.5)
            x = torch.randn(case.shape)
            layer(x)
            assert not layer.last_failures, layer.last_failures
            layers.append((layer, x))
        pipe.send(None)
        for which, begin, end in iter(pipe.recv, None):
            layer, x = layers[which]
            time.sleep(max(0.0, begin - time.perf_counter()))
            times = [time.perf_counter()]
            while times[-1] < end:
                layer(x)
                times.append(time.perf_counter())
            pipe.send(times)


@contextlib.contextmanager
def trainers(path: str, cases: list[Case], count: int) -> Iterator[list[Any]]:
    """The pipes of so many processes that are ready. They are forks of this one, which must not have used PyTorch's threads."""
    fork = multiprocessing.get_context("fork")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = fork.Pipe()
            processes.append(fork.Process(target=trainer, args=(theirs, path, cases), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        yield pipes
    finally:
        for pipe in pipes:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(None)
        for process in processes:
            process.join(20)


def together(pipes: list[Any], which: int, seconds: float) -> tuple[int, list[float]]:
    """How many passes of one of their layers came to their end in so many seconds, and what each took."""
    begin = time.perf_counter() + NOTICE_S
    for pipe in pipes:
        pipe.send((which, begin, begin + seconds))
    passes = []
    for pipe in pipes:
        times = pipe.recv()
        passes += [(end - start) * 1e3 for start, end in zip(times, times[1:]) if end <= begin + seconds]
    return len(passes), passes


def sessions(path: str, cases: list[Case], counts: list[int], rounds: int, seconds: float) -> dict[str, dict[int, Shares]]:
    """By kernel and number of sessions that run at once; all numbers take turns."""
    passes: dict[tuple[int, int], list[tuple[int, list[float]]]] = {}
    with trainers(path, cases, max(counts)) as pipes:
        for _ in range(rounds):
            for which in range(len(cases)):
                for count in counts:
                    passes.setdefault((which, count), []).append(together(pipes[:count], which, seconds))

    def shares(rounds: list[tuple[int, list[float]]]) -> Shares:
        times = sorted(took for _, each in rounds for took in each)
        per_second = statistics.median(count for count, _ in rounds) / seconds
        return Shares(per_second, statistics.median(times), times[len(times) * 99 // 100])

    return {case.name: {n: shares(passes[which, n]) for n in counts} for which, case in enumerate(cases)}
