"""A training loop, and kernels asked for behind its back."""

import concurrent.futures
import warnings

import torch
from torch import nn

import kasmina.torch
from .conftest import settled
from .modules import TOKENS


class Trainer:
    """Trains a layer with a grafted kernel on a session of its own; a second layer of the same session is there to
    graft others into."""

    def __init__(self, daemon, kernel="mlp"):
        self.daemon = daemon
        self.client = daemon.connect()
        self.layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), self.client, name="trained", seeds=1)
        self.beside = kasmina.torch.SeededLayer(nn.Linear(8, 8), self.client, name="beside", seeds=1)
        self.layer.seeds[0].graft(kernel, alpha=0.5, input_shape=TOKENS[1:])
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.01)
        self.threads = concurrent.futures.ThreadPoolExecutor(1)
        self.taken = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def steps(self, count=25):
        """Takes so many steps. Each of them ran its kernel: a warning of ours is an error here, and the daemon counts as
        many passes as were asked of it."""
        before = self.counted()
        with warnings.catch_warnings():
            # Ours alone: others' come from whatever is collected meanwhile.
            warnings.simplefilter("error", kasmina.SeedFailureWarning)
            warnings.simplefilter("error", kasmina.ConnectionWarning)
            for _ in range(count):
                self.optimizer.zero_grad()
                loss = (self.layer(torch.randn(TOKENS)) - 1).square().mean()
                loss.backward()
                self.optimizer.step()
                assert loss.isfinite()
        assert self.layer.connected
        self.taken += count
        settled(lambda: self.counted()["successes"] >= before["successes"] + count)
        after = self.counted()
        assert after["failures"] == before["failures"] and not any(after["failures"].values())
        assert self.supply_waits() == 0

    def supply_waits(self):
        """How often a pass of any session came to the supply, where it might have waited."""
        return sum(session["supply_waits"] for session in self.daemon.status()["sessions"])

    def counted(self):
        """The trained seed's numbers, by the operator's socket: the session's may be busy with a graft."""
        with self.daemon.operator() as operator:
            seeds = operator.seeds()["seeds"]
        return next(seed["stats"] for seed in seeds if seed["layer_name"] == "trained")

    def ask(self, kernel):
        """Grafts a kernel beside in the background; what became of it is in the future."""

        def graft():
            self.beside.seeds[0].graft(kernel, alpha=0.0, input_shape=TOKENS[1:])
            self.beside.seeds[0].prune()

        return self.threads.submit(graft)
