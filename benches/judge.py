"""The reference kernels through the daemon, beside PyTorch: eager, and compiled by `torch.compile`, in this process.

All sides of a line take turns, with as many threads. What the daemon gives is compared with eager's before it is timed.
"""

import math
import statistics
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benches")]

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import kasmina  # noqa: E402
from harness import SPIN_US, Limits, daemon, sample, taking_turns  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402
from reference_kernels import Case  # noqa: E402

#: What one side of a pass may take at most to be left out of the reach of 0.9: there the way to the daemon is all.
TINY_MS = 0.2
SEEDS = 4


class Apart(nn.Module):
    """A host without a part in the result: the layer is its kernel alone."""

    def forward(self, x):
        return x.detach()


def compiled(case: Case):
    """The case's module as `torch.compile` has it, or why there is none."""
    torch._dynamo.reset()
    module, x = torch.compile(case.module), torch.randn(case.shape)
    try:
        with torch.no_grad():
            module(x)
        module(x.requires_grad_()).sum().backward()
    except Exception as error:  # whatever its compiler, or ours of C++, has to say
        print(f"{case.name}: torch.compile failed: {error}", file=sys.stderr)
        return None
    case.module.zero_grad()
    return module


def steps(module, parameters, x, g):
    """A forward without gradients, and one with those of the input and of all parameters."""
    wants = x.detach().requires_grad_()

    def forward():
        with torch.no_grad():
            module(x)

    def both():
        module(wants).backward(g)
        wants.grad = None
        for parameter in parameters:
            parameter.grad = None

    return {"forward": forward, "forward_backward": both}


def work(case: Case, x, g):
    """By pass: floating-point operations of products and convolutions, and the bytes that any way to do it moves."""
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        y = case.module(x)
    forward = counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        case.module(x.clone().requires_grad_()).backward(g)
    case.module.zero_grad()
    moved = x.nbytes + y.nbytes + sum(parameter.nbytes for parameter in case.module.parameters())
    # Backward reads the same again but for y, whose gradient it reads, and writes gradients as large.
    return {"forward": (forward, moved), "forward_backward": (counted.get_total_flops(), 3 * moved)}


def measure(case: Case, client, budget_s: float, with_compiled: bool, most: Limits):
    """Rows for forward and forward + backward of one case."""
    x = torch.randn(case.shape)
    layer = SeededLayer(Apart(), client, name=case.name, input_shape=case.shape[1:])
    layer.train(case.module.training)
    layer.seeds[0].graft(case.kernel_id, alpha=1.0)
    with torch.no_grad():
        expected, actual = case.module(x), layer(x)
    error = float((expected - actual).norm() / expected.norm().clamp(min=1e-30))
    assert not layer.last_failures and error < 1e-4, f"{case.name}: {layer.last_failures}, error {error}"
    g = torch.randn(expected.shape)
    ours = [parameter for parameter in layer.seeds[0].parameters() if parameter.requires_grad]
    # The same tensors where the daemon reads them, as `client.empty` makes them.
    there = [client.empty(*each.shape).copy_(each) for each in (x, g)]
    theirs = list(case.module.parameters())
    sides = [steps(layer, ours, x, g), steps(layer, ours, *there), steps(case.module, theirs, x, g)]
    other = compiled(case) if with_compiled else None
    if other is not None:
        sides.append(steps(other, theirs, x, g))
    all_work = work(case, x, g)
    for name in sides[0]:
        times = taking_turns([side[name] for side in sides], budget_s)
        ours_ms, arena_ms, torch_ms = (side.median for side in times[:3])
        best_ms = min(side.median for side in times[2:])
        flops, moved = all_work[name]
        bound_ms = max(flops / most.gflops, moved / most.gb_per_s) / 1e6
        yield {
            "name": case.name,
            "pass": name,
            "ours_ms": round(ours_ms, 4),
            "arena_ms": round(arena_ms, 4),
            "torch_ms": round(torch_ms, 4),
            "compiled_ms": round(times[3].median, 4) if len(times) > 3 else None,
            "ratio": round(torch_ms / ours_ms, 3),
            "ratio_best": round(best_ms / ours_ms, 3),
            "spread": [round(side.spread, 3) for side in times],
            "gflops": round(flops / ours_ms / 1e6, 2),
            "gb_per_s": round(moved / ours_ms / 1e6, 2),
            "roofline": round(bound_ms / ours_ms, 3),
        }


def line(row) -> str:
    """A row as it is printed while the others are measured."""
    other = "      –     " if row["compiled_ms"] is None else f"{row['compiled_ms']:9.3f} ms"
    return (
        f"{row['name']:36} {row['pass']:17} kasmina {row['ours_ms']:9.3f} ms   PyTorch {row['torch_ms']:9.3f} ms   "
        f"compiled {other}   {row['ratio']:5.2f} x, {row['ratio_best']:5.2f} x the faster"
    )


def table(rows) -> list[str]:
    """The lines of the page."""
    lines = [
        "| case | pass | kasmina ms | ± % | x in the arena ms | PyTorch ms | ± % | compiled ms | × eager | × the faster "
        "| GFLOP/s | roofline % |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        other = "–" if row["compiled_ms"] is None else f"{row['compiled_ms']:.3f}"
        ours, theirs = (f"{50 * row['spread'][side]:.0f}" for side in (0, 2))
        lines.append(
            f"| {row['name']} | {row['pass'].replace('_', ' + ')} | {row['ours_ms']:.3f} | {ours} | {row['arena_ms']:.3f} "
            f"| {row['torch_ms']:.3f} | {theirs} | {other} | {row['ratio']:.2f} | {row['ratio_best']:.2f} | {row['gflops']:.1f} "
            f"| {100 * row['roofline']:.0f} |"
        )
    return lines


def geomean(rows, key: str) -> float:
    return round(math.exp(statistics.fmean(math.log(row[key]) for row in rows)), 3)


def slow(rows) -> list[str]:
    """The lines above [`TINY_MS`] that are below 0.9 of eager's speed."""
    return [f"{row['name']} {row['pass']}" for row in rows if row["torch_ms"] > TINY_MS and row["ratio"] < 0.9]


@contextmanager
def four_seeds(path: str, case: Case):
    """A convolution with four seeds that are live."""
    with kasmina.connect(path, arena_bytes=1 << 30) as client:
        torch.manual_seed(1)
        host = nn.Conv2d(case.shape[1], case.shape[1], 3, padding=1)
        layer = SeededLayer(host, client, seeds=SEEDS, input_shape=case.shape[1:])
        for seed in layer.seeds:
            seed.graft(case.kernel_id, alpha=1 / SEEDS)
        yield layer.eval()


def concurrency(binary: Path, kernels: Path, case: Case, threads: int, budget_s: float):
    """A forward of four seeds on one convolution, at once on all threads and one after the other on one thread."""
    with daemon(binary, kernels, threads, SPIN_US) as (many, _), daemon(binary, kernels, 1, SPIN_US) as (one, _):
        with four_seeds(many, case) as together, four_seeds(one, case) as apart, torch.no_grad():
            x = torch.randn(case.shape)
            torch.testing.assert_close(together(x), apart(x))
            both = taking_turns([lambda: together(x), lambda: apart(x)], budget_s)
    return {"concurrent_ms": round(both[0].median, 3), "serial_ms": round(both[1].median, 3)}


def round_trip(path: str, kernel: str, count: int = 4000) -> list[float]:
    """Times of a tiny forward through the client, in microseconds, the first tenth left out."""
    with kasmina.connect(path) as client, torch.no_grad():
        layer = SeededLayer(Apart(), client, name="tiny", input_shape=(64,))
        layer.seeds[0].graft(kernel, alpha=1.0)
        x = torch.randn(8, 64)
        return [ms * 1e3 for ms in sample(lambda: layer(x), count)[count // 10 :]]
