"""Kernels swapped without end while a trainer trains: no step fails, falls back or mixes two kernels, no pass makes a
plan, and every backward is of the kernel that its forward ran."""

import random
import threading
import warnings

import torch
from torch import nn

import kasmina.torch
from .conftest import settled
from .modules import TOKENS, twin
from .test_torch_product import near

SWAPS = 30
#: Passes that await their backward.
OUTSTANDING = 3
ALPHA, BESIDE = 0.5, 0.25
#: The trainer's batches by turns, as large as kernels take them, and whether it trains on them.
BATCHES = ((4, True), (3, True), (4, False))


def names():
    """Of each swap the kernel: two that differ, and each time again one that the daemon has never had."""
    for n in range(SWAPS):
        yield ("mlp", "attention", f"cold-{n // 3}")[n % 3]


def module_of(kernel):
    return twin("mlp" if kernel.startswith("cold") else kernel)


class Swapper(threading.Thread):
    """Swaps one seed's kernel, the next as soon as the last is live."""

    def __init__(self, seed):
        super().__init__(daemon=True)
        self.seed, self.failed = seed, None

    def run(self):
        try:
            for kernel in names():
                self.seed.graft(kernel, alpha=ALPHA, wait=False)
                settled(lambda kernel=kernel: self.seed.loading is None and self.seed.kernel == kernel, 60.0)
        except BaseException as error:
            self.failed = error


class Run:
    """A forward of a trainer, as it was."""

    def __init__(self, layer, head, batch):
        self.x = torch.randn(batch, *TOKENS[1:]).requires_grad_()
        self.y = layer(self.x)
        # The kernel that the pass ran: between its beginning and this line nobody else takes one over.
        self.kernel = layer.seeds[0].kernel
        self.parameters = dict(layer.seeds[0].named_parameters())
        self.gradient = None
        self.loss = head(self.y).square().mean()
        self.y.register_hook(lambda gradient: setattr(self, "gradient", gradient.clone()))

    def back(self, layer):
        """Its backward, and whether the gradients are those of its kernel and of no other."""
        for parameter in self.parameters.values():
            parameter.grad = None
        for parameter in layer.seeds[1].parameters():
            parameter.grad = None
        self.loss.backward()
        module, beside = module_of(self.kernel).double(), twin("attention").double()
        host, x = nn.Linear(8, 8).double(), self.x.detach().double().requires_grad_()
        host.load_state_dict(layer.host.state_dict())
        (host(x) + ALPHA * module(x) + BESIDE * beside(x)).backward(self.gradient.double())
        near(self.x.grad, x.grad, "gradient of x", 1e-4)
        for name, parameter in module.named_parameters():
            near(self.parameters[name].grad, parameter.grad, f"{self.kernel}'s {name}", 1e-4)
        for ours, parameter in zip(layer.seeds[1].parameters(), beside.parameters()):
            near(ours.grad, parameter.grad, "beside", 1e-4)


def planned(daemon):
    return daemon.status()["sessions"][0]["pass_plans"]


def test_swaps_under_load_cost_no_step_anything(start, origin):
    daemon = start(origin)
    with daemon.connect() as client, warnings.catch_warnings():
        # A seed that is left out of a pass warns.
        warnings.simplefilter("error", kasmina.SeedFailureWarning)
        warnings.simplefilter("error", kasmina.ConnectionWarning)
        torch.manual_seed(1)
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, "swapped", 2, "residual", TOKENS[1:])
        head = nn.Linear(8, 8)
        layer.seeds[0].graft("mlp", alpha=ALPHA)
        layer.seeds[1].graft("attention", alpha=BESIDE)
        # The seeds and the host stay as they are, so that outputs can be compared bit by bit; the head learns.
        optimizer, shuffled = torch.optim.SGD(head.parameters(), lr=0.01), random.Random(1)
        outputs, taken = [], []

        def step(batch, trains):
            layer.train(trains)
            if not trains:
                with torch.no_grad():
                    x = torch.randn(batch, *TOKENS[1:])
                    outputs.append((x, layer(x), layer.seeds[0].kernel, trains))
                return
            taken.append(Run(layer, head, batch))
            outputs.append((taken[-1].x.detach(), taken[-1].y.detach(), taken[-1].kernel, trains))
            assert not layer.last_failures
            if len(taken) == OUTSTANDING:
                optimizer.zero_grad()
                while taken:
                    taken.pop(shuffled.randrange(len(taken))).back(layer)
                optimizer.step()

        for batch, trains in BATCHES * 3:
            step(batch, trains)
        before = planned(daemon)
        assert before > 0, "the first of each kind is planned in its pass"
        swapper = Swapper(layer.seeds[0])
        swapper.start()
        steps = 0
        while swapper.is_alive() or steps < 50:
            step(*BATCHES[steps % len(BATCHES)])
            steps += 1
        assert swapper.failed is None, repr(swapper.failed)
        assert planned(daemon) == before, "a pass has made a plan"
        while taken:
            taken.pop().back(layer)
        assert {kernel for _, _, kernel, _ in outputs} == set(names())
        assert layer.connected and client.connected
        session = daemon.status()["sessions"][0]
        assert session["tickets"] == 0 and session["supply_waits"] == 0
        for seed in layer.seeds:
            stats = seed.stats()
            assert not any(stats["failures"].values()) and stats["executions"] == stats["successes"]
        exactly_one_kernels(layer, outputs)


def exactly_one_kernels(layer, outputs):
    """Each output is, bit by bit, what the layer gives with the kernel that ran in that pass."""
    seed = layer.seeds[0]
    for kernel in sorted({kernel for _, _, kernel, _ in outputs}):
        seed.graft(kernel, alpha=ALPHA)
        for x, y, ran, trains in outputs:
            if ran == kernel:
                layer.train(trains)
                with torch.no_grad():
                    assert torch.equal(layer(x), y), f"not {kernel} alone"
