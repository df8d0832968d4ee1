"""`make bench`: both sides of every figure in docs/performance.md, measured in one run.

Starts a release build of kasminad on a temporary folder and runs the reference kernels through
`kasmina.torch.SeededLayer` with alpha 1, hand-off included, beside PyTorch in this process with as many threads, eager and
compiled; they take turns. `--cases` measures these alone and writes their part of the page; `--case TEXT` runs those whose
names hold the text and writes nothing. `--no-compiled` leaves `torch.compile` out, which takes up to a minute for each case
that it has not seen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benches")]

import kasmina  # noqa: E402  before PyTorch, whose threads then leave their processors to the daemon sooner
import torch  # noqa: E402

import judge  # noqa: E402
import recovery  # noqa: E402
import supply  # noqa: E402
import swap  # noqa: E402
from echo import echo_round_trip  # noqa: E402
from fairness import fairness, table as fairness_table  # noqa: E402
from harness import SPIN_US, daemon, limits, machine, percentiles, write  # noqa: E402
from reading import reading, table  # noqa: E402
from reference_kernels import cases, export, longer  # noqa: E402

#: The kernel of the round trip, and that of four seeds on one layer.
TINY, SEEDED = "linear-64-64-b8", "conv3x3_bn_relu_eval 64x32x32 b32"


def rust_bench(name):
    command = ["cargo", "bench", "--locked", "--bench", name, "--quiet"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


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


def conditions(report):
    host = report["machine"]
    return (
        f"{host['cpu']}, {host['cores']} cores, PyTorch {host['torch']} with {report['threads']} threads, "
        f"load before the run {host['load_before']}."
    )


def kernels_page(report):
    """The part of the page about the reference kernels."""
    most, rows = report["limits"], report["cases"]
    slow = len(judge.slow(rows))
    lines = [
        f"{conditions(report)} In the same run a product of 2048 × 2048 in float32 reached {most['gflops']:.0f} GFLOP/s, "
        f"a copy of 256 MiB {most['gb_per_s']:.1f} GB/s.",
        "",
        "| over all lines | figure | reach |",
        "| --- | ---: | ---: |",
        f"| geometric mean, × PyTorch eager | {report['geomean']:.2f} | 2.0 |",
        f"| geometric mean, × the faster of eager and compiled | {report['geomean_best']:.2f} | 1.5 |",
        f"| lines above {judge.TINY_MS} ms below 0.9 × eager | {slow} of {len(rows)} | 0 |",
        "",
        *judge.table(rows),
    ]
    return "\n".join(lines)


def page(report):
    """The rest of the page."""
    trip, l1, four = report["round_trip"], report["l1"], report["seeds4"]
    lines = [
        conditions(report),
        "",
        "| what | figure |",
        "| --- | --- |",
        *l1_rows(l1, report["hit_rate"]),
        f"| bare 64-byte echo over a Unix socket, Python to Python | {trip['echo_us']} µs, p99 {trip['p99']['echo_us']} µs |",
        f"| round trip of linear 64→64 batch 8, spin_us 0 | {trip['block_us']} µs, p99 {trip['p99']['block_us']} µs |",
        f"| round trip of linear 64→64 batch 8, spin_us {SPIN_US} | {trip['spin_us']} µs, p99 {trip['p99']['spin_us']} µs |",
        supply.cycles_row(report["cycles"]),
        f"| start of the daemon until a session is served | {report['start_ms']:.0f} ms |",
        f"| four seeds on one convolution, at once and one after the other | {four['concurrent_ms']:.1f} and "
        f"{four['serial_ms']:.1f} ms: {four['serial_ms'] / four['concurrent_ms']:.2f} × |",
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
    ]
    return "\n".join(lines)


def round_trips(binary, kernels, threads):
    """Medians in microseconds, with their 99th percentiles; and what a daemon took to start, in milliseconds."""
    times = {"echo_us": percentiles(echo_round_trip())}
    for name, spin_us in (("block_us", 0), ("spin_us", SPIN_US)):
        with daemon(binary, kernels, threads, spin_us) as (path, started_s):
            times[name] = percentiles(judge.round_trip(path, TINY))
    trip = {name: figures["p50_us"] for name, figures in times.items()}
    return {**trip, "p99": {name: figures["p99_us"] for name, figures in times.items()}}, started_s * 1e3


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--daemon", type=Path, default=ROOT / "target" / "release" / "kasminad")
    only = arguments.add_mutually_exclusive_group()
    only.add_argument("--case", default="", help="only cases whose names hold this; nothing is written into the page")
    only.add_argument("--cases", action="store_true", help="all cases and nothing else")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--seconds", type=float, default=2, help="for the sides of each line together")
    arguments.add_argument("--no-compiled", action="store_true", help="without torch.compile")
    options = arguments.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    is_whole = not (options.case or options.cases)
    report = {"machine": machine(), "threads": options.threads, "cases": []}
    most = limits()
    report["limits"] = most._asdict()
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        kernels = Path(folder)
        every = list(cases()) + (list(longer()) if options.case else [])
        chosen = [case for case in every if options.case in case.name]
        for case in every:
            if case in chosen or case.kernel_id == TINY:
                export(case, kernels)
        if is_whole:
            report["l1"], report["hit_rate"] = rust_bench("l1"), rust_bench("hit_rate")
            report["reading"] = reading(kernels)
            report["supply"], report["cycles"] = supply.supply(), supply.cycles()
            report["swap"] = swap.swap()
            report["recovery"] = recovery.recovery()
            report["fairness"], report["turns"] = fairness(), rust_bench("turns")
            report["round_trip"], report["start_ms"] = round_trips(options.daemon, kernels, options.threads)
            (seeded,) = (case for case in every if case.name == SEEDED)
            report["seeds4"] = judge.concurrency(options.daemon, kernels, seeded, options.threads, 4 * options.seconds)
        with daemon(options.daemon, kernels, options.threads, SPIN_US) as (path, _):
            for case in chosen:
                with kasmina.connect(path, arena_bytes=1 << 30) as client:
                    for row in judge.measure(case, client, options.seconds, not options.no_compiled, most):
                        report["cases"].append(row)
                        print(judge.line(row), flush=True)
    report["geomean"] = judge.geomean(report["cases"], "ratio")
    report["geomean_best"] = judge.geomean(report["cases"], "ratio_best")
    print(f"geometric mean: {report['geomean']} x eager, {report['geomean_best']} x the faster of eager and compiled")
    target = ROOT / "target" / "bench" / "report.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1))
    parts = {} if options.case else {"cases": kernels_page(report)}
    if is_whole:
        parts["bench"] = page(report)
    for part, text in parts.items():
        print(text)
        write("performance.md", part, text)
    if is_whole:
        recovery.document(report["recovery"])


if __name__ == "__main__":
    main()
