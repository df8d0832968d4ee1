"""Trains a small network on handwritten digits and grafts two kernels into it on the way.

    python examples/train_digits.py --socket /run/kasmina/kasmina.sock

`kasminad` must be running, with examples/kernels as its origin.

The network trains by itself for half of the epochs. Then each seed of its middle layer is given a kernel, whose
share grows from nothing while everything trains on. `--host-only` shows what the network reaches without.
"""
import argparse
import gzip
import time
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIGITS = Path(__file__).resolve().parent / "data" / "digits.csv.gz"
TRAINING_DIGITS = 1297
# The generator that the split and the order of the batches come from; see data/README.md.
MULTIPLIER, INCREMENT, SPLIT_STATE = 6364136223846793005, 1442695040888963407, 2463534242


class Shuffler:
    """Fisher-Yates over a fixed generator, so that the same digits are tested on whatever runs this."""

    def __init__(self, state: int):
        self.state = state

    def shuffle(self, items: list) -> None:
        for i in range(len(items) - 1, 0, -1):
            self.state = (self.state * MULTIPLIER + INCREMENT) % 2**64
            j = (self.state >> 33) % (i + 1)
            items[i], items[j] = items[j], items[i]


class Digits(NamedTuple):
    images: Tensor
    labels: Tensor


def read_digits() -> tuple[Digits, Digits]:
    """The digits to train on and the digits to test with."""
    with gzip.open(DIGITS, "rt") as lines:
        rows = [[int(value) for value in line.split(",")] for line in lines]
    Shuffler(SPLIT_STATE).shuffle(rows)
    table = torch.tensor(rows)
    images, labels = (table[:, :64].float() / 16).view(-1, 1, 8, 8), table[:, 64]
    cut = TRAINING_DIGITS
    return Digits(images[:cut], labels[:cut]), Digits(images[cut:], labels[cut:])


def build(wrap: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The network, and the layer within it that may grow."""
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
    # A 1x1 convolution sees no strokes. It is weak on purpose.
    layer = wrap(nn.Conv2d(16, 16, 1))
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(stem, layer, head), layer


def batches(digits: Digits, order: list[int], size: int) -> Iterator[Digits]:
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield Digits(digits.images[chosen], digits.labels[chosen])


def accuracy(network: nn.Module, digits: Digits) -> float:
    network.eval()
    with torch.no_grad():
        hits = network(digits.images).argmax(1) == digits.labels
    network.train()
    return 100 * hits.float().mean().item()


class Growth:
    """Grafts the kernels, and raises their alphas step by step."""

    def __init__(self, layer: nn.Module, optimizer: torch.optim.Optimizer, kernels: list[str], steps: int):
        self.layer, self.optimizer, self.kernels, self.steps = layer, optimizer, kernels, steps
        self.step = 0

    def graft(self) -> None:
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for seed, kernel in zip(self.layer.seeds, self.kernels):
            seed.graft(kernel, alpha=0.0)
        # The kernels' parameters are the layer's now. The optimizer has to be told of them, as of any others.
        added = [p for p in self.layer.parameters() if id(p) not in known]
        self.optimizer.add_param_group({"params": added})

    def advance(self) -> None:
        self.step += 1
        for seed, _ in zip(self.layer.seeds, self.kernels):
            seed.alpha = min(1.0, self.step / self.steps)


def train(
    network: nn.Module, growth: Growth | None, optimizer: torch.optim.Optimizer, options: argparse.Namespace
) -> list[float]:
    """Test accuracy after each epoch."""
    training, test = read_digits()
    order, shuffler = list(range(len(training.labels))), Shuffler(options.seed)
    graft_epoch, cool_epoch = options.epochs // 2 + 1, options.epochs - options.epochs // 5 + 1
    reached = []
    for epoch in range(1, options.epochs + 1):
        began, losses = time.perf_counter(), []
        if growth and epoch == graft_epoch:
            growth.graft()
        if epoch == cool_epoch:
            for group in optimizer.param_groups:
                group["lr"] /= 10
        shuffler.shuffle(order)
        for batch in batches(training, order, options.batch):
            if growth and epoch >= graft_epoch:
                growth.advance()
            loss = F.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        reached.append(accuracy(network, test))
        growing = growth is not None and epoch >= graft_epoch
        alpha = f"  alpha {min(1.0, growth.step / growth.steps):.2f}" if growing else ""
        print(f"epoch {epoch:2d}  loss {sum(losses) / len(losses):.3f}  test {reached[-1]:5.1f} %"
              f"  {time.perf_counter() - began:.2f} s{alpha}", flush=True)
    return reached


def report(reached: list[float], layer: nn.Module, growth: Growth | None) -> None:
    print(f"\n{'':24s}test accuracy")
    print(f"at half of the epochs   {reached[len(reached) // 2 - 1]:5.1f} %")
    print(f"at the end              {reached[-1]:5.1f} %")
    if growth:
        print(f"\n{'seed':6s}{'kernel':24s}{'state':14s}{'alpha':>5s}{'passes':>9s}{'failed':>8s}{'mean':>10s}")
        for i, (seed, kernel) in enumerate(zip(layer.seeds, growth.kernels)):
            stats = seed.stats()
            failed = stats["executions"] - stats["successes"]
            print(f"{i:<6d}{kernel:24s}{seed.state:14s}{seed.alpha:5.2f}{stats['executions']:9d}{failed:8d}"
                  f"{stats['mean_us']:7.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="where kasminad listens (default: $KASMINA_SOCKET, else the system's)")
    parser.add_argument("--epochs", type=int, default=20, help="the kernels are grafted after half of them")
    parser.add_argument("--batch", type=int, default=64, help="digits a step")
    parser.add_argument("--rate", type=float, default=0.01, help="Adam's learning rate; a tenth in the last fifth")
    parser.add_argument("--ramp", type=int, default=5, help="epochs over which alpha goes from 0 to 1")
    parser.add_argument("--blend", default="convex", choices=["convex", "residual", "multiply"])
    parser.add_argument("--kernels", nargs="+", default=["conv3x3-bn-relu", "residual-double-conv"], metavar="ID")
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights and of the order of the digits")
    parser.add_argument("--host-only", action="store_true", help="graft nothing, and need no daemon")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs must be 2 or more: half of them come before the graft")

    torch.manual_seed(options.seed)
    if options.host_only:
        network, layer = build(lambda host: host)
    else:
        import kasmina.torch

        client = kasmina.connect(options.socket)
        seeds = len(options.kernels)
        network, layer = build(
            lambda host: kasmina.torch.SeededLayer(host, client, name="digits.middle", seeds=seeds, blend=options.blend)
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=options.rate)
    steps_an_epoch = -(-TRAINING_DIGITS // options.batch)
    growth = None if options.host_only else Growth(layer, optimizer, options.kernels, options.ramp * steps_an_epoch)
    report(train(network, growth, optimizer, options), layer, growth)


if __name__ == "__main__":
    main()
