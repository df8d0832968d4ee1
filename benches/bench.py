"""`make bench`: both sides of every figure in docs/performance.md, measured in one run.

Starts a release build of kasminad on a temporary folder and runs the reference kernels through
`kasmina.torch.SeededLayer` with alpha 1, hand-off included, beside PyTorch eager in this process with as many
threads; the two take turns. `--case TEXT` runs the cases whose names hold the text and writes nothing into
the documentation.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benches")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import kasmina  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402
from echo import echo_round_trip  # noqa: E402
import recovery  # noqa: E402
import supply  # noqa: E402
import swap  # noqa: E402
from fairness import fairness, table as fairness_table  # noqa: E402
from reading import reading, table  # noqa: E402
from reference_kernels import Case, cases, export, longer  # noqa: E402

#: The kernel of the round trip.
TINY = "linear-64-64-b8"
MARKERS = ("<!-- bench:begin -->", "<!-- bench:end -->")


class Apart(nn.Module):
    """A host without a part in the result: the layer is its kernel alone."""

    def forward(self, x):
        return x.detach()


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


def sample(function, count):
    """Times of single calls, in milliseconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def taking_turns(ours, theirs, budget_s):
    """Medians of both in milliseconds, from blocks that alternate until the time is up."""
    warm = min(statistics.median(sample(f, 3)) for f in (ours, theirs))
    block = max(3, min(200, int(20 / max(warm, 1e-3))))
    times = ([], [])
    until = time.perf_counter() + budget_s
    while time.perf_counter() < until or len(times[0]) < 3 * block:
        for function, into in zip((ours, theirs), times):
            function()
            into += sample(function, block)
    return tuple(statistics.median(side) for side in times)


def measure(case: Case, client, budget_s):
    """Rows for forward and forward + backward of one case."""
    x = torch.randn(case.shape)
    layer = SeededLayer(Apart(), client, name=case.name, input_shape=case.shape[1:])
    layer.train(case.module.training)
    layer.seeds[0].graft(case.kernel_id, alpha=1.0)
    with torch.no_grad():
        expected, actual = case.module(x), layer(x)
    error = float((expected - actual).norm() / expected.norm().clamp(min=1e-30))
    assert not layer.last_failures and error < 1e-4, f"{case.name}: {layer.last_failures}, error {error}"
    parameters = [p for p in layer.seeds[0].parameters() if p.requires_grad]
    theirs_parameters = list(case.module.parameters())
    wants_grad = x.clone().requires_grad_()
    g = torch.randn(expected.shape)

    def forward(f):
        def run():
            with torch.no_grad():
                f(x)

        return run

    def both(f, weights):
        def run():
            f(wants_grad).backward(g)
            wants_grad.grad = None
            for weight in weights:
                weight.grad = None

        return run

    passes = {
        "forward": (forward(layer), forward(case.module)),
        "forward+backward": (both(layer, parameters), both(case.module, theirs_parameters)),
    }
    for name, (ours, theirs) in passes.items():
        ours_ms, torch_ms = taking_turns(ours, theirs, budget_s)
        yield {
            "name": case.name,
            "pass": name,
            "ours_ms": round(ours_ms, 4),
            "torch_ms": round(torch_ms, 4),
            "ratio": round(torch_ms / ours_ms, 3),
        }


def round_trip(path, count=4000):
    """A tiny forward through the Python client, in microseconds."""
    with kasmina.connect(path) as client, torch.no_grad():
        layer = SeededLayer(Apart(), client, name="tiny", input_shape=(64,))
        layer.seeds[0].graft(TINY, alpha=1.0)
        x = torch.randn(8, 64)
        return percentiles([ms * 1e3 for ms in sample(lambda: layer(x), count)[count // 10 :]])


def percentiles(times):
    times = sorted(times)
    return {"p50_us": round(times[len(times) // 2], 1), "p99_us": round(times[len(times) * 99 // 100], 1)}


def rust_bench(name):
    command = ["cargo", "bench", "--locked", "--bench", name, "--quiet"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "unknown")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def geomean(rows):
    return round(math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows)), 3)


def l1_rows(l1, hit_rate):
    """Lines about the tier in memory."""
    names = {
        "lease": "L1 hit inside the daemon, leased",
        "quick_cache": "the same look-up in `quick_cache`",
        "moka": "the same look-up in `moka`",
    }
    figure = lambda name, field: f"{l1[f'{name}_{field}p50_ns']:.0f} ns"
    return [
        f"| {text} | {figure(name, '')} at the median, {l1[f'{name}_p99_ns']:.0f} ns p99; "
        f"2 threads {figure(name, '2_threads_')} |"
        for name, text in names.items()
    ] + [f"| memory left behind by 10,000 loads into a full L1 | {hit_rate['growth_bytes']} bytes |"]


def hit_rates(hit_rate):
    """The table of hit rates on skewed requests."""
    return [
        "| zipf exponent | room of 100 | kasmina % | best static % | quick_cache % | moka % |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ] + [
        f"| {row['exponent']} | {row['room']} | {row['kasmina']:.1f} | {row['best_static']:.1f} | "
        f"{row['quick_cache']:.1f} | {row['moka']:.1f} |"
        for row in hit_rate["hit_rate_percent"]
    ]


def markdown(report):
    trip, l1, host = report["round_trip"], report["l1"], report["machine"]
    lines = [
        f"{host['cpu']}, {host['cores']} cores, PyTorch {host['torch']} with {report['threads']} threads, "
        f"load before the run {host['load_before']}.",
        "",
        "| what | figure |",
        "| --- | --- |",
        *l1_rows(l1, report["hit_rate"]),
        f"| bare 64-byte echo over a Unix socket, Python to Python | {trip['echo']['p50_us']} µs, "
        f"p99 {trip['echo']['p99_us']} µs |",
        *(
            f"| round trip of linear 64→64 batch 8, spin_us {spin} | {trip[f'spin_{spin}']['p50_us']} µs, "
            f"p99 {trip[f'spin_{spin}']['p99_us']} µs |"
            for spin in report["spins"]
        ),
        supply.cycles_row(report["cycles"]),
        f"| start of the daemon until a session is served | {report['start_ms']:.0f} ms |",
        f"| geometric mean over all cases | {report['geomean']} × PyTorch eager |",
        "",
        *table(report["reading"]),
        "",
        *supply.table(report["supply"]),
        "",
        *swap.table(report["swap"]),
        "",
        *fairness_table(report["fairness"], report["turns"]),
        "",
        *hit_rates(report["hit_rate"]),
        "",
        "| case | pass | kasmina ms | PyTorch ms | × faster |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['name']} | {row['pass']} | {row['ours_ms']:.3f} | {row['torch_ms']:.3f} | {row['ratio']:.2f} |"
        for row in report["cases"]
    ]
    return "\n".join(lines)


def write_documentation(page):
    path = ROOT / "docs" / "performance.md"
    text = path.read_text()
    before, rest = text.split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    path.write_text(f"{before}{MARKERS[0]}\n{page}\n{MARKERS[1]}{after}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--daemon", type=Path, default=ROOT / "target" / "release" / "kasminad")
    arguments.add_argument("--case", default="", help="only cases whose names hold this")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--seconds", type=float, default=1.5, help="for each side by side measurement")
    options = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    report = {"machine": machine(), "threads": options.threads, "spins": [0, 50], "cases": []}
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        kernels = Path(folder)
        every = list(cases()) + (list(longer()) if options.case else [])
        chosen = [case for case in every if options.case in case.name]
        for case in every:
            if case in chosen or case.kernel_id == TINY:
                export(case, kernels)
        if not options.case:
            report["l1"], report["hit_rate"] = rust_bench("l1"), rust_bench("hit_rate")
            report["reading"] = reading(kernels)
            report["supply"], report["cycles"] = supply.supply(), supply.cycles()
            report["swap"] = swap.swap()
            report["recovery"] = recovery.recovery()
            report["fairness"], report["turns"] = fairness(), rust_bench("turns")
            report["round_trip"] = {"echo": percentiles(echo_round_trip())}
            for spin in report["spins"]:
                with daemon(options.daemon, kernels, options.threads, spin) as (path, started_s):
                    report["round_trip"][f"spin_{spin}"] = round_trip(path)
                    report["start_ms"] = started_s * 1e3
        with daemon(options.daemon, kernels, options.threads, 50) as (path, _):
            for case in chosen:
                with kasmina.connect(path, arena_bytes=1 << 30) as client:
                    for row in measure(case, client, options.seconds):
                        report["cases"].append(row)
                        print(
                            f"{row['name']:36} {row['pass']:17} kasmina {row['ours_ms']:9.3f} ms   "
                            f"PyTorch {row['torch_ms']:9.3f} ms   {row['ratio']:5.2f} x",
                            flush=True,
                        )
    report["geomean"] = geomean(report["cases"])
    print(f"geometric mean: {report['geomean']} x PyTorch eager")
    target = ROOT / "target" / "bench" / "report.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1))
    if not options.case:
        page = markdown(report)
        print(page)
        write_documentation(page)
        recovery.write(report["recovery"], recovery.conditions())


if __name__ == "__main__":
    main()
