"""A daemon that kills or stops itself at a point, and a trainer's whole life beside the same training in plain PyTorch.

What a step was (with the seeds, with the host alone, lost) is read from its output and its exceptions; after a death
plain PyTorch goes on from what the trainer holds.
"""

import copy
import os
import signal
import socket
import subprocess
import time

import torch
from torch import nn

import kasmina.torch
from .composition import Composition, alike, tensors
from .conftest import ROOT, Daemon, settled
from .modules import TOKENS, twin
from .test_equality import close

FAILPOINTS = ROOT / "target/debug/examples/kasminad_failpoints"
BUILD = "cargo build --locked --example kasminad_failpoints"
#: A batch that makes a convolution worth a thread of its own.
IMAGES = (96, 6, 5, 5)
SOON = '[engine]\nrecovery_backoff = "1ms"\n[device]\nthreads = 2\n'
DIED = (kasmina.ConnectionLost, kasmina.SessionError)


def points():
    """Every point of the binary, in its order; none where it is not built."""
    if not FAILPOINTS.exists():
        return []
    listed = subprocess.run([str(FAILPOINTS), "--list-failpoints"], capture_output=True, text=True, check=True)
    return [line.split("\t")[0] for line in listed.stdout.splitlines()]


class Dying(Daemon):
    """A kasminad with points."""

    def command(self, *arguments):
        return [str(FAILPOINTS), *super().command(*arguments)[1:]]

    def revive(self, **variables):
        """Starts it again on the same sockets, to act at another point or at none."""
        self.environment = {**os.environ, **variables}
        self.process = subprocess.Popen(self.command(), stderr=self.log, env=self.environment)
        settled(lambda: self.process.poll() is not None or self.answers())

    def answers(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.control)) == 0


class Died(Exception):
    """The daemon is dead, and the step or the request was what it was."""


class Life:
    """Operations of a trainer, one after the other, each done again where the daemon died in it."""

    def __init__(self, daemon, point):
        self.daemon, self.point = daemon, point
        #: Of the daemon started when the trainer is to come back, rather than of the first.
        self.later = {}
        self.deaths = 0
        self.client = self.layer = self.plain = None
        self.optimizers = []
        #: A schedule of the first seed: where it starts, where it ends, in how many steps, and how many are done.
        self.way = None
        self.is_broken = False
        torch.manual_seed(3)

    def live(self):
        for operation in self.operations():
            self.attempt(operation)
        assert self.daemon.process.poll() is None or self.deaths == 0, "it dies once"
        if self.daemon.process.poll() is None and self.deaths == 0:
            # It has nothing more to wait for than the session's end.
            self.daemon.process.wait(20)
        assert self.deaths or self.daemon.process.returncode == -signal.SIGKILL
        assert f"failpoint {self.point} reached: Kill" in self.daemon.text()
        assert "panicked" not in self.daemon.text()

    def attempt(self, operation):
        for _ in range(4):
            try:
                operation()
            except (Died, *DIED) as error:
                assert self.is_dead(), f"{operation.__name__} failed without a death: {error!r}"
            else:
                if self.daemon.process.poll() is None:
                    return
                self.is_dead()
                self.come_back()
                return
            self.come_back()
        raise AssertionError(f"{operation.__name__} was tried again and again")

    def is_dead(self):
        """Whether the daemon has killed itself, which it may just be about to have done."""
        try:
            self.daemon.process.wait(20)
        except subprocess.TimeoutExpired:
            return False
        return self.daemon.process.returncode == -signal.SIGKILL

    def settled_or_died(self, condition):
        """Waits for what only a daemon that lives can bring about."""
        settled(lambda: condition() or self.daemon.process.poll() is not None)
        if self.daemon.process.poll() is not None:
            raise Died

    def come_back(self):
        """Goes on alone, starts the daemon again, and finds everything as the trainer holds it."""
        self.deaths += 1
        assert self.deaths == 1, "the daemon has died twice"
        self.alone()
        self.daemon.revive()
        self.arrive()

    def alone(self):
        if self.layer is None:
            return
        self.take_from_trainer()
        if self.optimizers:
            settled(lambda: not self.client.connected)
            for _ in range(2):
                assert self.step(dead=True) == "alone"
        self.held = self.holds()

    def arrive(self):
        """Waits until what was in the daemon is there again, and looks whether it is the same."""
        if self.client is None:
            return
        self.settled_or_died(lambda: self.client.connected)
        if self.layer is None:
            return
        self.settled_or_died(lambda: self.layer._arrived)
        if self.is_broken or self.plain is None:
            return
        # A call without a gradient takes over, and changes no statistics.
        x = torch.randn(self.shape)
        self.layer.eval(), self.plain.eval()
        with torch.no_grad():
            y, truth = self.layer(x), self.plain(x)
        self.layer.train(), self.plain.train()
        if not torch.equal(truth, self.plain.host(x)) and torch.equal(y, self.layer.host(x)):
            assert self.is_dead(), "a pass ran without its seeds, and the daemon lives"
        if self.daemon.process.poll() is not None:
            raise Died
        if not all(seed.present for seed in self.layer.seeds if seed.kernel):
            # It has answered the pass, and may just be about to have died of that.
            assert self.is_dead(), "a kernel is missing, and the daemon lives"
            raise Died
        for (name, now), (_, before) in zip(self.holds(), self.held):
            assert torch.equal(now, before), name
        close(y, truth, "the first pass after the return", 1e-4)
        with self.daemon.operator() as operator:
            there = {each["seed"]: each for each in operator.seeds()["seeds"] if each["layer_name"] == "layer"}
        for seed in self.layer.seeds:
            if seed.kernel:
                each = there[seed.index]
                assert each["kernel"] == seed.kernel
                assert abs(each["alpha"] - seed.alpha) < 1e-6, (each, seed.alpha)
        if self.way is not None and self.way[3] < self.way[2]:
            assert there[0]["state"] == "blending" and there[0]["steps_left"] == self.way[2] - self.way[3]

    def holds(self):
        """What the trainer holds of its seeds, copied."""
        return [
            (f"{seed.index} {name}", tensor.detach().clone())
            for seed in self.layer.seeds
            for name, tensor in [*seed.named_parameters(), *seed.named_buffers()]
        ]

    def take_from_trainer(self):
        """Has plain PyTorch go on from what the trainer holds: parameters, buffers, alphas, the optimizer's memory."""
        if self.plain is None or self.is_broken:
            return
        with torch.no_grad():
            for _, ours, other in tensors(self.layer, self.plain):
                other.copy_(ours)
        for index, seed in enumerate(self.layer.seeds):
            self.plain.numbers[index] = torch.tensor(seed.alpha if seed.kernel else 0.0)
        if self.way is not None:
            start, end, steps, done = self.way
            # The pass in which the daemon died may be one that the trainer has seen the end of.
            here = round((self.layer.seeds[0].alpha - start) / (end - start) * steps)
            assert 0 <= here - done <= 1, (self.layer.seeds[0].alpha, self.way)
            self.way = (start, end, steps, here)
        if self.optimizers:
            ours, theirs = self.optimizers
            theirs.load_state_dict(copy.deepcopy(ours.state_dict()))

    # what a trainer does

    def optimise(self):
        self.optimizers = [
            torch.optim.Adam(model.parameters(), 1e-3, eps=1e-4) for model in (self.layer, self.plain)
        ]

    def step(self, submit=False, dead=False):
        """A step of both; what it was."""
        x, target = torch.randn(self.shape), torch.randn(self.shape)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        try:
            y = self.layer.submit(x).result() if submit else self.layer(x)
        except kasmina.ConnectionLost as lost:
            raise AssertionError("a forward was lost, and the host was at hand") from lost
        with torch.no_grad():
            ran = not torch.equal(y, self.layer.host(x))
        if not ran and not dead:
            # The daemon died under the forward, and the host went on at once.
            assert self.is_dead(), "a step ran without its seeds, and the daemon lives"
        try:
            (y - target).square().mean().backward()
        except kasmina.ConnectionLost as lost:
            assert ran and self.is_dead(), f"a step without the daemon was lost, or the daemon lives: {lost}"
            raise Died from lost
        truth = self.plain(x) if ran else self.plain.host(x)
        close(y, truth, "a step", 1e-3)
        (truth - target).square().mean().backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if ran and self.way is not None:
            self.advance()
        if not ran and not dead:
            raise Died
        return "seeded" if ran else "alone"

    def advance(self):
        start, end, steps, done = self.way
        self.way = start, end, steps, min(done + 1, steps)
        self.plain.numbers[0] = torch.tensor(start + (end - start) * self.way[3] / steps)

    def agree(self):
        alike(self.layer, self.plain, 2e-3, gradients=False)


def host():
    torch.manual_seed(1)
    return nn.Conv2d(6, 6, 3, padding=1)


class Images(Life):
    """Two seeds with BatchNorm on a convolution, through everything that a seed can go through."""

    shape = IMAGES

    def operations(self):
        yield self.connect
        yield self.open
        yield self.graft_first
        yield self.graft_second
        self.optimise()
        yield self.step
        yield self.step
        yield self.weigh
        yield self.step
        yield self.schedule
        yield self.step
        yield self.go_away
        while self.way[3] < self.way[2]:
            yield self.step
        self.agree()
        yield self.hold
        yield self.step
        yield self.swap
        self.optimise()
        yield self.step
        yield lambda: self.step(submit=True)
        yield self.drop
        yield self.step
        yield self.come_and_go
        self.agree()
        yield self.fossilize
        yield self.step
        yield self.prune
        yield self.step
        self.agree()
        yield self.fail
        yield self.step
        self.agree()
        yield self.close

    def connect(self):
        self.client = self.daemon.connect()

    def open(self):
        self.settled_or_died(lambda: self.client.connected)
        module = host()
        plain = Composition(copy.deepcopy(module), "convex", [], [], [])
        layer = kasmina.torch.SeededLayer(module, self.client, "layer", seeds=2, input_shape=self.shape[1:])
        self.layer, self.plain = layer, plain

    def graft_first(self):
        self.graft(0, "conv-norm", 0.3)

    def graft_second(self):
        self.graft(1, "conv-norm", 0.2)

    def graft(self, index, kernel, alpha):
        seed, plain = self.layer.seeds[index], self.plain
        seed.graft(kernel, alpha=alpha)
        while len(plain.kernels) <= index:
            plain.kernels.append(nn.Identity())
            plain.roles.append("blend")
        plain.kernels[index] = twin(kernel)
        plain.numbers[index] = torch.tensor(float(alpha))

    def weigh(self):
        # It never raises: if the daemon dies in it, the next is told.
        self.layer.seeds[1].alpha = 0.25
        self.plain.numbers[1] = torch.tensor(0.25)

    def schedule(self):
        self.layer.seeds[0].blend(kasmina.Schedule("linear", 4, 0.7))
        self.way = 0.3, 0.7, 4, 0

    def go_away(self):
        """Where the daemon is to die as the trainer comes back, it is killed here and started to do so."""
        if not self.later:
            return
        self.take_from_trainer()
        self.daemon.kill()
        settled(lambda: not self.client.connected)
        assert self.step(dead=True) == "alone"
        self.held = self.holds()
        later, self.later = self.later, {}
        self.daemon.revive(**later)
        self.arrive()

    def hold(self):
        self.layer.seeds[0].blend(kasmina.Schedule("linear", 100, 0.2))
        self.layer.seeds[0].hold()
        self.way = None
        self.plain.numbers[0] = torch.tensor(self.layer.seeds[0].alpha)
        assert abs(self.layer.seeds[0].alpha - 0.7) < 1e-6

    def swap(self):
        self.graft(1, "squeeze", 0.25)

    def drop(self):
        y = self.layer(torch.randn(self.shape))
        if torch.equal(y, self.layer.host(torch.randn(self.shape))) or not self.client.connected:
            raise Died
        # The statistics have seen this pass, and plain PyTorch has not.
        del y
        self.take_from_trainer()

    def come_and_go(self):
        beside = kasmina.torch.SeededLayer(nn.Linear(8, 8), self.client, "beside", seeds=1)
        beside.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        beside(torch.randn(TOKENS)).sum().backward()
        beside.remote.close()
        assert self.layer.seeds[0].state == "holding"

    def fossilize(self):
        self.layer.seeds[0].fossilize()
        self.plain.numbers[0] = torch.tensor(1.0)

    def prune(self):
        self.layer.seeds[0].prune()
        self.plain.numbers[0], self.plain.kernels[0] = torch.tensor(0.0), nn.Identity()

    def fail(self):
        """The other seed gives no numbers until it is unloaded; then it gives some, and comes back."""
        seed = self.layer.seeds[1]
        weights = dict(seed.named_parameters())["up.weight"]
        if not self.is_broken:
            self.is_broken, self.weights = True, weights.detach().clone()
        with torch.no_grad():
            weights.fill_(float("nan"))
            until = time.monotonic() + 20
            while seed.stats()["failures"]["non_finite"] < 3:
                assert time.monotonic() < until
                self.layer(torch.randn(self.shape))
            weights.copy_(self.weights)
            while seed.state != "holding":
                assert time.monotonic() < until
                self.layer(torch.randn(self.shape))
        self.is_broken = False
        self.plain.numbers[1] = torch.tensor(seed.alpha)
        assert abs(seed.alpha - 0.25) < 1e-6

    def close(self):
        self.client.close()
        self.layer = self.client = None


class Hosted(Images):
    """A host in the daemon, whose backward runs its forward again."""

    shape = TOKENS

    def operations(self):
        yield self.connect
        yield self.open
        yield self.graft_first
        self.optimise()
        yield self.step
        yield self.step
        yield self.go_away
        yield self.step
        yield self.step
        self.agree()
        yield self.close

    def open(self):
        self.settled_or_died(lambda: self.client.connected)
        torch.manual_seed(1)
        module = nn.Linear(8, 8)
        plain = Composition(copy.deepcopy(module), "convex", [], [], [])
        layer = kasmina.torch.SeededLayer(
            module, self.client, "layer", seeds=1, input_shape=self.shape[1:], host="daemon", recompute=True
        )
        self.layer, self.plain = layer, plain

    def graft_first(self):
        self.graft(0, "mlp", 0.3)
