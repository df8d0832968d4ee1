"""A trainer and a daemon on one GPU: what a training step of a layer of four seeds costs, beside the same in PyTorch alone.

Without NVIDIA's MPS the driver lets the two processes take turns on the card; `--mps` starts it for this run, in a folder of
its own, and ends it. `--json` writes what was measured: microseconds of a step with its backward, of the trainer's thread in a
forward, and of PyTorch's own step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benches")]

import kasmina  # noqa: E402  before PyTorch, as in bench.py
import torch  # noqa: E402
from torch import nn  # noqa: E402

import kasmina.torch  # noqa: E402
from harness import daemon  # noqa: E402
from device import timed  # noqa: E402
from reference_kernels import cases, export  # noqa: E402

SEEDS, ALPHA, CASE = 4, 0.2, "mlp 8x128x256"
#: Passes handed over before any is waited for, when the trainer's thread alone is timed: fewer than a ring has places.
HANDED_OVER = 40


@contextmanager
def mps():
    """NVIDIA's MPS for the processes that are started within, and for this one if it has not used the GPU yet."""
    with tempfile.TemporaryDirectory(prefix="kasmina-mps-") as folder:
        os.environ["CUDA_MPS_PIPE_DIRECTORY"], os.environ["CUDA_MPS_LOG_DIRECTORY"] = folder, folder
        subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True, timeout=20)
        try:
            yield
        finally:
            # Whoever is its client still is let go after a second: this process is one.
            subprocess.run(["nvidia-cuda-mps-control"], input="quit -t 1\n", text=True, timeout=20, check=False)


def measured(client, case, device, wait):
    """Microseconds of both sides. `wait` waits for the GPU."""
    torch.manual_seed(1)
    host = nn.Linear(case.shape[-1], case.shape[-1], device=device)
    x = torch.randn(case.shape, device=device, requires_grad=True)
    g = torch.randn(case.shape, device=device)
    layer = kasmina.torch.SeededLayer(host, client, name="layer", seeds=SEEDS, input_shape=case.shape[1:], blend="residual")
    for seed in layer.seeds:
        seed.graft(case.kernel_id, alpha=ALPHA)
    module = case.module.to(device)

    def composed(x):
        return host(x) + sum(ALPHA * module(x) for _ in range(SEEDS))

    def step(f):
        def run():
            f(x).backward(g)
            x.grad = None
            for parameter in (*layer.parameters(), *module.parameters()):
                parameter.grad = None

        return run

    actual, expected = layer(x), composed(x)
    wait()
    error = float(((actual - expected).norm() / expected.norm()).detach())
    assert not layer.last_failures and error < 1e-3, (layer.last_failures, error)
    actual.backward(g)
    step_us, torch_us = timed(step(layer), wait), timed(step(composed), wait)

    def handed_over():
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(HANDED_OVER):
                layer(x)
        took = time.perf_counter() - began
        wait()
        return took / HANDED_OVER * 1e6

    return {"step_us": step_us, "torch_us": torch_us, "host_us": sorted(handed_over() for _ in range(9))[4]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", type=Path, default=ROOT / "target/release/kasminad")
    parser.add_argument("--mps", action="store_true", help="with NVIDIA's MPS")
    parser.add_argument("--json", type=Path, help="where what was measured is written")
    options = parser.parse_args()
    case = next(case for case in cases() if case.name == CASE)
    with tempfile.TemporaryDirectory(prefix="kasmina-sharing-") as folder, mps() if options.mps else nullcontext():
        export(case, Path(folder))
        images = os.environ.get("KASMINA_IMAGES", "")
        settings = f'kind = "cuda"\nlibraries = ["{sys.prefix}"]\nimage_folder = "{images}"\n'
        with daemon(options.daemon, Path(folder), 2, 50, settings) as (path, _):
            with kasmina.connect(path, device="cuda:0") as client:
                report = measured(client, case, "cuda:0", torch.cuda.synchronize)
        if options.json:
            options.json.write_text(json.dumps(report))
    print(
        f"{SEEDS} seeds of {CASE}, {'with' if options.mps else 'without'} MPS: {report['step_us']:.0f} us a step, PyTorch alone "
        f"{report['torch_us']:.0f}; the trainer's thread {report['host_us']:.1f} us in a forward"
    )


if __name__ == "__main__":
    main()
