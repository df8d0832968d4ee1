"""Grows a network while it trains: kernels are tried one after the other, and what does not help is taken out again.

    python examples/grow_cifar_like.py --socket /run/kasmina/kasmina.sock --report growth

`kasminad` must be running, with examples/kernels as its origin. Two classes of images would do as well; the real ones
here are the handwritten digits that scikit-learn ships (examples/data).

The middle layer of a small network has seeds, and a controller decides over them by a part of the training images that
nobody trains on. A kernel first learns behind the layer, whose output stays the same (TRAINING). Then its share grows
from nothing (BLENDING) and stays (HOLDING) while the gain is measured. One that has gained enough becomes part of the
layer (FOSSILIZED); any other is pruned, and its slot takes it no more for a while.

Writes growth.png (accuracy, shares and events over time) and growth.html, which has the same with every decision.
"""
import argparse
import base64
import html
import threading
from pathlib import Path
from typing import NamedTuple

# Before PyTorch, whose threads then leave their processors to the daemon sooner.
import kasmina.torch
import torch
import torch.nn.functional as F
from kasmina import Schedule
from torch import nn

from train_digits import Digits, Shuffler, accuracy, batches, build, read_digits

VALIDATION_DIGITS = 297


class Decision(NamedTuple):
    """What became of a kernel that was tried."""

    epoch: int
    seed: int
    kernel: str
    before: float
    after: float
    stays: bool


class Watcher(threading.Thread):
    """Writes down what the daemon says happens, with the step at which it was heard."""

    def __init__(self, client: kasmina.Client, record: "Record"):
        super().__init__(daemon=True)
        self.events, self.record = client.events(), record

    def run(self) -> None:
        try:
            for event in self.events:
                self.record.events.append((self.record.step, event))
        except kasmina.ConnectionLost:
            pass


class Record:
    """The run over time."""

    def __init__(self, seeds: int):
        self.step = 0
        self.alphas = [[] for _ in range(seeds)]
        self.accuracies: list[tuple[int, float, float]] = []
        self.events: list[tuple[int, dict]] = []
        self.decisions: list[Decision] = []


class Controller:
    """Tries kernels, one seed at a time, and moves each on as epochs go by."""

    def __init__(self, layer: kasmina.torch.SeededLayer, optimizer: torch.optim.Optimizer, options: argparse.Namespace):
        self.layer, self.optimizer, self.options = layer, optimizer, options
        self.waiting = list(options.kernels)
        self.steps_an_epoch = -(-(1297 - VALIDATION_DIGITS) // options.batch)
        self.tried, self.age, self.before = None, 0, 0.0

    def after_epoch(self, epoch: int, gained: float, record: Record) -> None:
        """Decides by the accuracy on the images that are kept apart."""
        if self.tried is None:
            self.germinate(gained)
            return
        self.age += 1
        seed, options = self.tried, self.options
        if self.age == options.training:
            seed.blend(Schedule("cosine", steps=options.blending * self.steps_an_epoch, target=1.0))
        elif self.age == options.training + options.blending + options.holding:
            stays = gained - self.before >= options.gain
            record.decisions.append(Decision(epoch, seed.index, seed.kernel, self.before, gained, stays))
            if stays:
                seed.fossilize()
            else:
                self.take_out(seed)
            self.tried = None

    def germinate(self, before: float) -> None:
        dormant = [seed for seed in self.layer.seeds if seed.kernel is None]
        if not dormant or not self.waiting:
            return
        self.tried, self.age, self.before = dormant[0], 0, before
        # Fetched, proven and planned here, before the next epoch. Its parameters are the layer's from now on, and the
        # optimizer has to be told of them, as of any others.
        self.tried.graft(self.waiting.pop(0), train=True)
        self.optimizer.add_param_group({"params": list(self.tried.parameters())})

    def take_out(self, seed: kasmina.torch.Seed) -> None:
        kasmina.torch.forget(self.optimizer, seed.parameters())
        seed.prune(embargo=3600.0)


def train(network: nn.Module, controller: Controller, options: argparse.Namespace, record: Record) -> float:
    """Trains and grows; gives the accuracy on the test images."""
    whole, test = read_digits()
    cut = len(whole.labels) - VALIDATION_DIGITS
    training, kept = Digits(whole.images[:cut], whole.labels[:cut]), Digits(whole.images[cut:], whole.labels[cut:])
    order, shuffler = list(range(cut)), Shuffler(options.seed)
    for epoch in range(1, options.epochs + 1):
        shuffler.shuffle(order)
        for batch in batches(training, order, options.batch):
            loss = F.cross_entropy(network(batch.images), batch.labels)
            controller.optimizer.zero_grad()
            loss.backward()
            controller.optimizer.step()
            record.step += 1
            for alphas, seed in zip(record.alphas, controller.layer.seeds):
                alphas.append(seed.alpha)
        gained, reached = accuracy(network, kept), accuracy(network, test)
        record.accuracies.append((record.step, gained, reached))
        states = "  ".join(f"{seed.kernel or '-'} {seed.state} {seed.alpha:.2f}" for seed in controller.layer.seeds)
        print(f"epoch {epoch:2d}  loss {loss.item():.3f}  kept {gained:5.1f} %  test {reached:5.1f} %  {states}", flush=True)
        if epoch >= options.first and epoch < options.epochs:
            controller.after_epoch(epoch, gained, record)
    return reached


def draw(record: Record, path: Path) -> None:
    """The picture: accuracy, shares, and what happened when."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(10, 8), sharex=True, height_ratios=[3, 2, 2])
    steps = [step for step, _, _ in record.accuracies]
    top.plot(steps, [kept for _, kept, _ in record.accuracies], label="images kept apart")
    top.plot(steps, [test for _, _, test in record.accuracies], label="test images")
    top.set_ylabel("accuracy, %")
    top.legend(loc="lower right")
    for index, alphas in enumerate(record.alphas):
        middle.plot(range(1, len(alphas) + 1), alphas, label=f"seed {index}")
    middle.set_ylabel("alpha")
    middle.legend(loc="center right")
    changes = [(step, event) for step, event in record.events if event["event"] == "state_changed"]
    states = ["dormant", "loading", "training", "blending", "holding", "fossilized", "pruned", "error_recovery"]
    for index in range(len(record.alphas)):
        mine = [(step, states.index(event["to"])) for step, event in changes if event["seed"] == index]
        bottom.step([step for step, _ in mine], [state for _, state in mine], where="post", marker="o", label=f"seed {index}")
    bottom.set_yticks(range(len(states)), states)
    bottom.set_xlabel("training step")
    for decision in record.decisions:
        step = record.accuracies[decision.epoch - 1][0]
        for axes in (top, middle, bottom):
            axes.axvline(step, color="green" if decision.stays else "red", linestyle=":", linewidth=1)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_report(record: Record, picture: Path, path: Path, options: argparse.Namespace) -> None:
    """The same as a page that needs nothing beside itself."""
    def table(head: list[str], rows: list[list[object]]) -> str:
        cells = lambda tag, row: "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row) + "</tr>"
        return f"<table>{cells('th', head)}{''.join(cells('td', row) for row in rows)}</table>"

    image = base64.b64encode(picture.read_bytes()).decode()
    decisions = [
        [d.epoch, d.seed, d.kernel, f"{d.before:.1f}", f"{d.after:.1f}", "stays" if d.stays else "pruned"]
        for d in record.decisions
    ]
    told = ("event", "sequence", "unix_ms", "session", "layer", "layer_name", "seed", "generation", "kernel", "alpha")
    events = [
        [
            step,
            event["event"],
            event.get("seed", ""),
            event.get("kernel", ""),
            f"{event['alpha']:.3f}" if "alpha" in event else "",
            ", ".join(f"{name} {value}" for name, value in event.items() if name not in told),
        ]
        for step, event in record.events
    ]
    _, kept, test = record.accuracies[-1]
    path.write_text(
        "<!doctype html><meta charset=utf-8><title>A network that grew</title>"
        "<style>body{font:15px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
        "img{max-width:100%}</style>"
        f"<h1>A network that grew</h1><p>{len(record.accuracies)} epochs, {record.step} steps, blend "
        f"{html.escape(options.blend)}: {kept:.1f} % of the images kept apart, {test:.1f} % of the test images.</p>"
        f"<img alt='accuracy, alphas and states over the steps' src='data:image/png;base64,{image}'>"
        "<h2>Decisions</h2>"
        + table(["epoch", "seed", "kernel", "kept apart before, %", "after, %", "decision"], decisions)
        + "<h2>Events</h2>"
        + table(["step", "event", "seed", "kernel", "alpha", "details"], events)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="where kasminad listens (default: $KASMINA_SOCKET, else the system's)")
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--first", type=int, default=8, help="the epoch after which the first kernel is tried")
    parser.add_argument("--training", type=int, default=2, help="epochs that a kernel learns behind the layer")
    parser.add_argument("--blending", type=int, default=3, help="epochs over which its share grows from 0 to 1")
    parser.add_argument("--holding", type=int, default=2, help="epochs before its gain is measured")
    parser.add_argument("--gain", type=float, default=1.0, help="percentage points by which a kernel has to help")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rate", type=float, default=0.01, help="Adam's learning rate")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--blend", default="residual", choices=["convex", "residual", "multiply"])
    parser.add_argument(
        "--kernels",
        nargs="+",
        default=["squeeze-excite", "conv3x3-bn-relu", "bottleneck", "residual-double-conv"],
        metavar="ID",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights and of the order of the images")
    parser.add_argument("--report", default="growth", help="where the picture and the page go, without their endings")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    with kasmina.connect(options.socket) as client:
        record = Record(options.seeds)
        watcher = Watcher(client, record)
        watcher.start()
        network, layer = build(
            lambda host: kasmina.torch.SeededLayer(
                host, client, name="grows", seeds=options.seeds, blend=options.blend, input_shape=(16, 8, 8)
            )
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=options.rate)
        train(network, Controller(layer, optimizer, options), options, record)
        watcher.events.close()
        watcher.join()
    picture, page = Path(f"{options.report}.png"), Path(f"{options.report}.html")
    draw(record, picture)
    write_report(record, picture, page, options)
    for decision in record.decisions:
        print(f"{decision.kernel} in seed {decision.seed}: {decision.before:.1f} % before, {decision.after:.1f} % after, "
              f"{'stays' if decision.stays else 'pruned'}")
    print(f"{picture} and {page} written")


if __name__ == "__main__":
    main()
