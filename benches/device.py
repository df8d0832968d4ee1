"""Kernels on a device beside PyTorch on the same one: what `benches/device.rs` measures of ours, eager and compiled.

Both sides hand passes over without waiting for each and then wait for all. Ours saves what a backward needs; so does
PyTorch, whose forward is run with gradients enabled. `--json` writes what was measured, besides the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches")]

import torch  # noqa: E402
from reference_kernels import Case, cases, export  # noqa: E402

#: Kernels of which several fit on a device beside each other; the first is also the layer's.
SMALL = ("mlp 8x128x256", "selfattention 8x128x256", "linear 64->64 b8")
#: Those that are compiled, one of each kind: compiling takes many times as long as measuring.
COMPILED = (
    "linear 64->64 b8",
    "mlp 8x128x256",
    "selfattention 8x128x256",
    "layernorm 8x128x256",
    "conv3x3_bn_relu 64x32x32 b32",
    "bottleneck 256x8x8 b64",
)
SAMPLES, SAMPLE_SECONDS = 9, 0.02


def write(chosen, folder, dtype):
    """The kernels of some cases with the list that `benches/device.rs` reads, those first that are small."""
    order = sorted(chosen, key=lambda case: SMALL.index(case.name) if case.name in SMALL else len(SMALL))
    lines = [
        {
            "name": case.name,
            "file": f"{export(case, folder, getattr(torch, dtype))}.pt2",
            "shape": case.shape,
            "dtype": dtype,
            "train": case.module.training,
            "small": case.name in SMALL,
        }
        for case in order
    ]
    (folder / "cases.json").write_text(json.dumps(lines))


def ours(binary, folder, device, passes, under="", once=False):
    """What the Rust side measures."""
    command = [*under.split(), binary, device, folder, str(passes), *(["once"] if once else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("{"))[-20000:], flush=True)
        raise SystemExit(f"{binary} ended with {done.returncode}; what it said stands above")
    # A tool that watches says things of its own before and after.
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def timed(run, wait):
    """Microseconds of a call of which many are made before all are waited for; the median of several samples."""

    def sample(count):
        began = time.perf_counter()
        for _ in range(count):
            run()
        wait()
        return (time.perf_counter() - began) / count

    first = min(sample(3), sample(3))
    count = min(2000, max(3, int(SAMPLE_SECONDS / first)))
    return statistics.median(sample(count) for _ in range(SAMPLES)) * 1e6


def theirs(case: Case, device, dtype, compiled):
    """A case in PyTorch, forward and with backward."""
    module = case.module.to(device)
    x = torch.randn(case.shape, device=device, dtype=dtype, requires_grad=True)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    step = torch.compiler.cudagraph_mark_step_begin if compiled else lambda: None
    run = torch.compile(module, mode="reduce-overhead") if compiled else module
    g = torch.randn_like(module(x))

    def forward():
        step()
        run(x)

    def both():
        step()
        run(x).backward(g)
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    return {"forward_us": timed(forward, wait), "forward_backward_us": timed(both, wait)}


def table(report):
    """The report as it is read."""
    lines = [
        f"{report['dtype']} on {report['ours']['device']}, torch {report['torch']}, tf32 in convolutions of PyTorch: {report['tf32']}",
        "",
        f"{'kernel':36} {'pass':>8} {'ours':>9} {'no graphs':>9} {'no libs':>9} {'eager':>9} {'x':>5} {'compiled':>9} {'x':>5}  us",
    ]
    for name, times in report["ours"]["kernels"].items():
        for key, word in (("forward_us", "forward"), ("forward_backward_us", "both")):
            mine = times[key]
            row = [f"{name:36} {word:>8} {mine:9.1f}"]
            for lack in ("graphs", "libraries"):
                plain = report["ours"][f"kernels_without_{lack}"].get(name, {}).get(key)
                row.append(f"{plain:9.1f}" if plain else f"{'':9}")
            for side in ("eager", "compiled"):
                other = report[side].get(name, {}).get(key)
                row.append(f"{other:9.1f} {other / mine:5.2f}" if other else f"{'':15}")
            lines.append(" ".join(row))
    lines.append("")
    for name, times in report["ours"]["kernels"].items():
        lines.append(f"{name:36} the host's part of a forward: {times['host_us']:.1f} us")
    lines.append("")
    for name, rows in report["ours"]["seeds"].items():
        for row in rows:
            ratio = row["one_after_the_other_us"] / row["beside_us"]
            lines.append(
                f"{name:36} {row['seeds']} seeds beside each other {row['beside_us']:9.1f} us, one after the other "
                f"{row['one_after_the_other_us']:9.1f} us: {ratio:.2f} x"
            )
    layer = report["ours"]["layer"]
    if layer:
        lines += [
            "",
            f"a layer of {layer['seeds']} seeds of {layer['kernel']}, {layer['passes']} training passes from and to the host: "
            f"{layer['pass_us']:.1f} us each",
            f"memory of kernels and sessions {layer['held_bytes'][0]} bytes before, {layer['held_bytes'][1]} after; "
            f"free on the device {layer['free_bytes'][0]} before, {layer['free_bytes'][1]} after",
        ]
    return "\n".join(lines)


def built():
    """The benchmark's program, built here."""
    command = ["cargo", "bench", "--locked", "--bench", "device", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    messages = map(json.loads, lines)
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "device")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--binary", type=Path, help="the benchmark's program; built where none is given")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--case", default="", help="only cases whose names hold this text")
    parser.add_argument("--passes", type=int, default=2000, help="training passes of the layer")
    parser.add_argument("--compile-seconds", type=float, default=120, help="how long compiling may go on; 0 for never")
    parser.add_argument("--under", default="", metavar="COMMAND", help="a tool that runs the benchmark's program")
    parser.add_argument("--once", action="store_true", help="do each thing and time none: for a tool that watches")
    parser.add_argument("--json", type=Path, help="where what was measured is written")
    options = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    chosen = [case for case in cases() if options.case in case.name]
    for case in chosen:
        case.module.to(dtype)
    binary = options.binary or built()
    with tempfile.TemporaryDirectory(prefix="kasmina-device-") as folder:
        write(chosen, Path(folder), options.dtype)
        report = {"ours": ours(binary, folder, options.device, options.passes, options.under, options.once)}
    if options.once:
        print(f"every kernel ran on {report['ours']['device']}")
        return
    report |= {"dtype": options.dtype, "torch": torch.__version__, "tf32": torch.backends.cudnn.allow_tf32, "eager": {}, "compiled": {}}

    def keep():
        if options.json:
            options.json.write_text(json.dumps(report, indent=1))

    keep()
    for case in chosen:
        report["eager"][case.name] = theirs(case, options.device, dtype, compiled=False)
    keep()
    until = time.monotonic() + options.compile_seconds
    for case in (case for name in COMPILED for case in chosen if case.name == name):
        if time.monotonic() < until:
            try:
                report["compiled"][case.name] = theirs(case, options.device, dtype, compiled=True)
            except Exception as error:  # whatever a compiler does: the other figures stand
                print(f"{case.name} is not compiled: {str(error)[:300]}", file=sys.stderr)
            keep()
    print(table(report))


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
    main()
