"""`make bench-plots`: how the cost of a pass and of the daemon grows, as plots and with the law that each curve follows.

Five subjects: a pass against the live seeds of its layer, a step against the layers it goes through, all sessions' passes
against how many run at once, a pass against its batch, and the daemon's memory against dormant seeds; and how often a
daemon wakes up that has nothing to do. All points of a subject take turns. PyTorch has one thread in a trainer, the
daemon as many as there are processors. Writes `docs/plots/` and the tables of docs/performance.md; `--only TEXT` measures
the subjects that hold the text, draws them and leaves the page alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))
sys.path[:0] = [str(ROOT / "python" / "tests"), str(ROOT / "python"), str(ROOT / "benches")]

import kasmina  # noqa: E402  before PyTorch, as in bench.py
import torch  # noqa: E402
from torch import nn  # noqa: E402

import scale_daemon  # noqa: E402
import scale_sessions  # noqa: E402
from harness import SPIN_US, daemon, machine, sample, write  # noqa: E402
from judge import steps  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402
from reference_kernels import Case, conv_bn_relu, export  # noqa: E402
from scale_plots import Curve, draw, figure  # noqa: E402

SEEDS, LAYERS, SESSIONS = [1, 2, 4, 8, 16, 32, 64], [1, 4, 16, 64, 256], [1, 2, 4, 8, 16, 32]
BATCHES = {"linear": [1, 8, 64, 512, 4096], "conv": [1, 2, 4, 8, 16, 32, 64]}
DORMANT, IN_LAYER = list(range(0, 10_001, 1000)), (64, 4)
IDLE_S = 10.0
#: One kernel that is next to no work, and one that is some.
CASES = {
    "linear": Case("linear 64→64 b8", nn.Linear(64, 64), (8, 64)),
    "conv": Case("conv3x3_bn_relu_eval 32x16x16 b8", conv_bn_relu(32).eval(), (8, 32, 16, 16)),
}
PASSES = {"forward": "forward", "forward_backward": "forward + backward"}


def layer_of(client: Any, case: Case, name: str, seeds: int = 1) -> SeededLayer:
    """A layer whose seeds are all live."""
    layer = SeededLayer(nn.Identity(), client, name, seeds, "residual", case.shape[1:])
    layer.train(case.module.training)
    for seed in layer.seeds:
        seed.graft(case.kernel_id, alpha=0.1 / seeds)
    return layer


def both_passes(module: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The passes of a module by name, each run once and found without a failure."""
    layers = [one for one in module.modules() if isinstance(one, SeededLayer)]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    made = steps(module, parameters, x, torch.randn(x.shape))
    for run in made.values():
        run()
        assert not any(layer.last_failures for layer in layers), layers[0].last_failures
    return made


def in_turns(sides: dict[Any, Callable[[], object]], budget_s: float, slice_s: float = 0.03) -> dict[Any, float]:
    """Medians in milliseconds of sides that may be a thousandfold apart: each has as much time in its turn."""
    counts = {key: max(2, int(slice_s * 1e3 / statistics.median(sample(side, 3)))) for key, side in sides.items()}
    times: dict[Any, list[float]] = {key: [] for key in sides}
    until = time.perf_counter() + budget_s
    while time.perf_counter() < until or len(next(iter(times.values()))) == 0:
        for key, side in sides.items():
            # The first call of a turn counts for nobody, as in harness.py.
            side()
            times[key] += sample(side, counts[key])
    return {key: statistics.median(taken) for key, taken in times.items()}


def curves(modules: dict[int, tuple[nn.Module, torch.Tensor]], budget_s: float) -> list[Curve]:
    """Forward, and forward with backward, by n."""
    made = {n: both_passes(module, x) for n, (module, x) in modules.items()}
    times = in_turns({(name, n): made[n][name] for name in PASSES for n in made}, budget_s)
    return [Curve(text, {n: times[name, n] for n in made}, "ms") for name, text in PASSES.items()]


def seeds(path: str, budget_s: float) -> dict[str, list[Curve]]:
    found = {}
    for case in CASES.values():
        with kasmina.connect(path, arena_bytes=1 << 30) as client:
            x = torch.randn(case.shape)
            found[case.name] = curves({n: (layer_of(client, case, f"{n}", n), x) for n in SEEDS}, budget_s / 2)
    return found


def layers(path: str, budget_s: float) -> dict[str, list[Curve]]:
    case = CASES["linear"]
    with kasmina.connect(path, arena_bytes=1 << 30) as client:
        stack, x = [layer_of(client, case, f"{n}") for n in range(max(LAYERS))], torch.randn(case.shape)
        return {case.name: curves({n: (nn.Sequential(*stack[:n]), x) for n in LAYERS}, budget_s)}


def batch(path: str, budget_s: float) -> dict[str, list[Curve]]:
    found = {}
    for kind, case in CASES.items():
        with kasmina.connect(path, arena_bytes=1 << 30) as client:
            inputs = {n: torch.randn(n, *case.shape[1:]) for n in BATCHES[kind]}
            # A layer for each: one remembers the plans of so many shapes and no more.
            made = {n: (layer_of(client, case, f"{n}"), x) for n, x in inputs.items()}
            found[case.name.rsplit(" b", 1)[0]] = curves(made, budget_s / 2)
    return found


def sessions(kernels: Path, options: argparse.Namespace) -> dict[str, dict[int, scale_sessions.Shares]]:
    """By kernel and by how long both sides look for the next message before they sleep."""
    found = {}
    for spin_us, cases in ((0, list(CASES.values())), (SPIN_US, [CASES["linear"]])):
        with daemon(options.daemon, kernels, options.threads, spin_us) as (path, _):
            by_kernel = scale_sessions.sessions(path, cases, SESSIONS, 5, options.seconds / 40)
        found |= {f"{name}, spin_us {spin_us}": shares for name, shares in by_kernel.items()}
    return found


def measured(options: argparse.Namespace, kernels: Path) -> dict[str, Any]:
    """By subject; those of many processes first, which are forks."""
    is_wanted = lambda subject: options.only in subject
    found: dict[str, Any] = {}
    if is_wanted("sessions"):
        found["sessions"] = sessions(kernels, options)
    for subject in (seeds, layers, batch):
        if is_wanted(subject.__name__):
            with daemon(options.daemon, kernels, options.threads, SPIN_US) as (path, _):
                found[subject.__name__] = subject(path, options.seconds)
    if is_wanted("dormant"):
        found["dormant"] = {n: scale_daemon.dormant(kernels, DORMANT, n) for n in IN_LAYER}
    if is_wanted("idle"):
        found["idle"] = scale_daemon.idle(kernels, CASES["linear"], IDLE_S)
    return found


def session_curves(found: dict[str, Any]) -> list[Curve]:
    """The time of a pass of each session, from the rate of all: what n sessions take is what its law is of."""
    return [Curve(name, {n: 1e3 * n / one.per_second for n, one in shares.items()}, "ms") for name, shares in found.items()]


def dormant_curves(found: dict[int, Any]) -> list[Curve]:
    return [
        Curve(f"{n} in a layer", {seeds: one.resident_kib for seeds, one in held.items()}, "KiB") for n, held in found.items()
    ]


def plots(found: dict[str, Any]) -> None:
    titles = {"seeds": ("live seeds of the layer", "a pass"), "layers": ("layers", "a step"), "batch": ("batch", "a pass")}
    for subject, (x, what) in titles.items():
        if subject in found:
            by_kernel = found[subject].items()
            figure(subject, [lambda axes, k=k, c=c: draw(axes, c, f"{what} of {k}", x, "ms, median") for k, c in by_kernel])
    if "sessions" in found:
        lines = session_curves(found["sessions"])
        rate = lambda n, ms: 1e3 * n / ms
        figure(
            "sessions",
            [
                lambda axes: draw(axes, lines, "all sessions", "sessions that run at once", "passes/s", rate),
                lambda axes: draw(axes, lines, "each session", "sessions that run at once", "ms for a pass, mean"),
            ],
        )
    if "dormant" in found:
        lines = dormant_curves(found["dormant"])
        figure("dormant", [lambda axes: draw(axes, lines, "the daemon", "dormant seeds", "KiB resident", is_doubling=False)])


def rows(what: str, lines: dict[str, Curve], shown: Callable[[int, float], str]) -> list[str]:
    """A table of the points of curves over the same n, and of their laws."""
    points = list(next(iter(lines.values())).points)
    return [
        f"| {what} | {' | '.join(f'{n:,}' for n in points)} | law | R² | off by at most |",
        f"| --- |{' ---: |' * len(points)} --- | ---: | ---: |",
        *(
            f"| {name} | {' | '.join(shown(n, value) for n, value in line.points.items())} | {line.law.text(line.unit)} "
            f"| {line.law.r2:.3f} | {100 * line.law.off:.0f} % |"
            for name, line in lines.items()
        ),
        "",
    ]


def table(found: dict[str, Any]) -> list[str]:
    """As docs/performance.md has it."""
    lines = []
    for subject, what in (("seeds", "live seeds, ms"), ("layers", "layers, ms"), ("batch", "batch, ms")):
        by_points: dict[tuple[int, ...], dict[str, Curve]] = {}
        for kernel, each in found[subject].items():
            for curve in each:
                by_points.setdefault(tuple(curve.points), {})[f"{kernel}, {curve.name}"] = curve
        for named in by_points.values():
            lines += rows(what, named, lambda n, ms: f"{ms:.3g}")
    named = {f"{curve.name}: passes/s": curve for curve in session_curves(found["sessions"])}
    lines += rows("sessions", named, lambda n, ms: f"{1e3 * n / ms:.0f}")[:-1]
    for name, shares in found["sessions"].items():
        cells = " | ".join(f"{one.p50_ms:.2f}, {one.p99_ms:.2f}" for one in shares.values())
        lines.append(f"| {name}: ms of a pass, p50, p99 | {cells} | | | |")
    named = {f"{curve.name}: MiB resident": curve for curve in dormant_curves(found["dormant"])}
    lines += ["", *rows("dormant seeds", named, lambda n, kib: f"{kib / 1024:.1f}")[:-1]]
    for n, held in found["dormant"].items():
        cells = " | ".join(f"{one.threads}, {one.descriptors}" for one in held.values())
        lines.append(f"| {n} in a layer: threads, descriptors | {cells} | | | |")
    lines += ["", "| idle daemon | threads | wake-ups/s | beyond the watchdog's |", "| --- | ---: | ---: | ---: |"]
    for name, woken in found["idle"].items():
        watched, unwatched = (woken[watch] for watch in scale_daemon.WATCHES)
        lines.append(f"| {name} | {len(watched)} | {sum(watched.values()):.1f} | {sum(unwatched.values()):.1f} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--daemon", type=Path, default=Path(os.environ["KASMINAD"]))
    arguments.add_argument("--threads", type=int, default=os.cpu_count(), help="of the daemon")
    arguments.add_argument("--seconds", type=float, default=20, help="for each subject")
    arguments.add_argument("--only", default="", help="seeds, layers, sessions, batch, dormant, idle; the page is left alone")
    options = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    here = machine()
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        for case in CASES.values():
            export(case, Path(folder))
        found = measured(options, Path(folder))
    target = ROOT / "target" / "bench" / "scale.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1))
    plots(found)
    if options.only:
        print(json.dumps(found, indent=1))
        return
    about = (
        f"{here['cpu']}, {here['cores']} cores, PyTorch {here['torch']} with 1 thread, the daemon with {options.threads}, "
        f"load before the run {here['load_before']}."
    )
    text = "\n".join([about, "", *table(found)])
    print(text)
    write("performance.md", "scale", text)


if __name__ == "__main__":
    main()
