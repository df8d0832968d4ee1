"""Four active seeds on one convolution: the case of docs/comparison.md.

A `Conv2d(64, 64, 3, padding=1)` on maps of 32 × 32 in batches of 32, its blend convex, each seed with alpha 0.25. The same
composition is run by PyTorch, eager, in this process and with as many threads; the two take turns and are compared.
Writes the table of the page.
"""

import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("KASMINAD", str(ROOT / "target/release/kasminad"))
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benches")]

import kasmina  # noqa: E402  before PyTorch, as in bench.py
import torch  # noqa: E402
from torch import nn  # noqa: E402

from harness import SPIN_US, daemon, machine, taking_turns, write  # noqa: E402
from kasmina.torch import SeededLayer  # noqa: E402
from reference_kernels import Case, bottleneck, conv_bn_relu, depthwise_separable, export  # noqa: E402

SHAPE, SEEDS, ALPHA = (32, 64, 32, 32), 4, 0.25
KERNELS = {
    "1×1 convolution": lambda: conv_bn_relu(64, 1),
    "bottleneck": lambda: bottleneck(64),
    "depthwise separable": lambda: depthwise_separable(64),
    "3×3 convolution": lambda: conv_bn_relu(64),
}


def row(client, name, case, place):
    """Milliseconds of both sides, forward alone and forward with backward."""
    torch.manual_seed(1)
    host, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(SHAPE)
    layer = SeededLayer(host, client, seeds=SEEDS, input_shape=SHAPE[1:], host=place)
    modules = [case.module] * SEEDS
    for seed in layer.seeds:
        seed.graft(case.kernel_id, alpha=ALPHA)
    layer.eval()
    case.module.eval()

    def composed(x):
        return sum(ALPHA * module(x) for module in modules)

    def theirs(x):
        # The share of the host is 1 - 4 · 0.25.
        return 0.0 * host(x) + composed(x)

    with torch.no_grad():
        expected, actual = theirs(x), layer(x)
        error = float((expected - actual).abs().max() / expected.abs().max())
        assert not layer.last_failures and error < 1e-5, (name, error, layer.last_failures)
        ours, other = taking_turns([lambda: layer(x), lambda: theirs(x)], 3.0)
    wants = x.clone().requires_grad_()
    both = taking_turns([lambda: layer(wants).sum().backward(), lambda: theirs(wants).sum().backward()], 4.0)
    where = {"trainer": "in the trainer", "daemon": "in the daemon"}[place]
    return (
        f"| {name} | {where} | {ours.median:.1f} | {other.median:.1f} | {both[0].median:.1f} | {both[1].median:.1f} "
        f"| {error:.0e} |"
    )


def main():
    threads = os.cpu_count()
    torch.set_num_threads(threads)
    rows = [
        "| kernel of each seed | host | forward, ms | PyTorch, ms | forward + backward, ms | PyTorch, ms | largest relative difference |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    with tempfile.TemporaryDirectory(prefix="kasmina-kernels-") as folder:
        kernels = Path(folder)
        cases = {name: Case(f"compared {n}", make(), SHAPE) for n, (name, make) in enumerate(KERNELS.items())}
        for case in cases.values():
            export(case, kernels)
        with daemon(Path(os.environ["KASMINAD"]), kernels, threads, SPIN_US) as (path, _):
            with kasmina.connect(path, arena_bytes=1 << 30) as client:
                for name, case in cases.items():
                    for place in ("trainer", "daemon"):
                        rows.append(row(client, name, case, place))
                        print(rows[-1], flush=True)
    here = machine()
    about = f"{here['cpu']}, {here['cores']} cores, PyTorch {here['torch']}, load before the run {here['load_before']}."
    write("comparison.md", "comparison", "\n".join([about, "", *rows]))


if __name__ == "__main__":
    main()
