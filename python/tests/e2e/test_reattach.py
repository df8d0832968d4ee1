"""Training through the death and the return of the daemon, beside the same training by PyTorch alone.

The shadow is told after each step what that step did: it ran the seeds, or the host alone, or was lost with the daemon.
Which it was is read from the outputs themselves.
"""

import contextlib
import copy
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import ended, settled
from .modules import IMAGE, TOKENS, twin

pytestmark = pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
PYTHON = Path(__file__).resolve().parents[2]


class Shadow(nn.Module):
    """What a seeded layer computes, or its host alone."""

    def __init__(self, layer, kernels, alphas):
        super().__init__()
        self.host = copy.deepcopy(layer.host)
        self.kernels = nn.ModuleList(twin(kernel) for kernel in kernels)
        self.alphas = alphas

    def forward(self, x, seeded=True):
        h = self.host(x)
        if not seeded:
            return h
        mixed = sum(alpha * kernel(x) for alpha, kernel in zip(self.alphas, self.kernels))
        return (1 - sum(self.alphas)) * h + mixed


class Twins:
    """A model of seeded layers in a row and its shadow, each with its own AdamW, taking the same steps."""

    def __init__(self, client, layers, shape, host):
        torch.manual_seed(5)
        self.shape = shape
        self.ours = nn.Sequential()
        self.theirs = nn.ModuleList()
        for n, grafts in enumerate(layers):
            layer = kasmina.torch.SeededLayer(host(), client, name=f"layer-{n}", seeds=len(grafts))
            for seed, (kernel, alpha) in zip(layer.seeds, grafts.items()):
                seed.graft(kernel, alpha=alpha, input_shape=shape[1:])
            self.ours.append(layer)
            self.theirs.append(Shadow(layer, grafts, list(grafts.values())))
        # With an eps above the noise of gradients that are zero in truth, such as an attention's bias of keys.
        self.optimizers = [torch.optim.AdamW(model.parameters(), 1e-2, eps=1e-4) for model in (self.ours, self.theirs)]
        self.identities = [id(parameter) for parameter in self.ours.parameters()]
        self.taken = {"seeded": 0, "alone": 0, "lost": 0}
        self.ran = []
        for layer in self.ours:
            layer.register_forward_hook(self.note)

    def note(self, layer, inputs, output):
        with torch.no_grad():
            training = layer.host.training
            self.ran.append(not torch.equal(output, layer.host.train(training)(inputs[0])))

    def step(self):
        """Takes one step on both sides; what it was."""
        x, target = torch.randn(self.shape), torch.randn(self.shape)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.ran = []
        outcome = "lost"
        with contextlib.suppress(kasmina.ConnectionLost):
            (self.ours(x) - target).square().mean().backward()
            outcome = "seeded" if any(self.ran) else "alone"
        self.taken[outcome] += 1
        # A pass that was lost may have updated running statistics or not; no kernel here has any where that matters.
        if outcome == "lost":
            return outcome
        for shadow, seeded in zip(self.theirs, self.ran):
            x = shadow(x, seeded)
        (x - target).square().mean().backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return outcome

    def until(self, outcome, patience=20.0):
        """Takes steps until one is as wanted."""
        deadline = time.monotonic() + patience
        while self.step() != outcome:
            assert time.monotonic() < deadline, self.taken
        assert not any(layer._arrived for layer in self.ours)

    def all_seeded(self, patience=20.0):
        """Takes steps until one has run the seeds of every layer."""
        deadline = time.monotonic() + patience
        while self.step() != "seeded" or not all(self.ran):
            assert time.monotonic() < deadline, (self.taken, self.ran)

    def agree(self):
        """Every parameter, and what the optimizers remember of it, is as in the shadow."""
        assert [id(parameter) for parameter in self.ours.parameters()] == self.identities
        ours, theirs = (list(model.parameters()) for model in (self.ours, self.theirs))
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)
            steps = [opt.state[p]["step"].item() for opt, p in zip(self.optimizers, (one, other)) if p in opt.state]
            assert len(set(steps)) <= 1
        for layer, shadow in zip(self.ours, self.theirs):
            for seed, kernel in zip(layer.seeds, shadow.kernels):
                buffers = dict(seed.named_buffers())
                for name, buffer in kernel.named_buffers():
                    torch.testing.assert_close(buffers[name], buffer, rtol=1e-3, atol=1e-5)


def linear():
    return nn.Linear(8, 8)


def kill(daemon):
    daemon.kill()


def restart(daemon):
    daemon.process = daemon.start()


def test_training_goes_on_through_a_restart(daemon):
    with daemon.connect() as client:
        twins = Twins(client, [{"attention": 0.4, "mlp": 0.3}], TOKENS, linear)
        for _ in range(5):
            assert twins.step() == "seeded"
        kill(daemon)
        twins.until("alone")
        for _ in range(3):
            assert twins.step() == "alone"
        restart(daemon)
        twins.all_seeded()
        for _ in range(5):
            assert twins.step() == "seeded"
        twins.agree()
        assert twins.taken["lost"] <= 1
        assert daemon.status()["sessions"][0]["live_seeds"] == 2


def test_several_layers_and_two_restarts(daemon):
    with daemon.connect() as client:
        layers = [{"attention": 0.4, "mlp": 0.3}, {"mlp": 0.5}, {"mlp": 0.2, "attention": 0.2}]
        twins = Twins(client, layers, TOKENS, linear)
        for _ in range(2):
            for _ in range(3):
                assert twins.step() == "seeded" and all(twins.ran)
            kill(daemon)
            twins.until("alone")
            restart(daemon)
            twins.all_seeded()
        for _ in range(3):
            assert twins.step() == "seeded" and all(twins.ran)
        twins.agree()


def test_buffers_come_along(daemon):
    with daemon.connect() as client:
        twins = Twins(client, [{"conv-norm": 0.5, "squeeze": 0.25}], IMAGE, lambda: nn.Conv2d(6, 6, 3, padding=1))
        for _ in range(4):
            assert twins.step() == "seeded"
        # Between two steps, so that no pass is lost and the statistics are known.
        kill(daemon)
        settled(lambda: not client.connected)
        assert twins.step() == "alone"
        restart(daemon)
        twins.all_seeded()
        for _ in range(3):
            assert twins.step() == "seeded"
        twins.agree()
        assert twins.taken["lost"] == 0


def test_a_daemon_that_is_back_before_anyone_looked_costs_no_step(daemon):
    with daemon.connect() as client:
        twins = Twins(client, [{"mlp": 0.5}], TOKENS, linear)
        twins.step()
        kill(daemon)
        restart(daemon)
        settled(lambda: twins.ours[0]._arrived)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert twins.step() == "seeded"
        assert ["back" in str(each.message) for each in caught] == [True]
        twins.agree()


def test_no_step_waits_while_the_daemon_is_away(daemon):
    with daemon.connect() as client:
        twins = Twins(client, [{"mlp": 0.5}], TOKENS, linear)
        twins.step()
        kill(daemon)
        twins.until("alone")
        # Whoever listens and never answers is no daemon, and no step waits for him.
        os.unlink(daemon.socket)
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(daemon.socket))
            mute.listen()
            asked, _ = mute.accept()
            for _ in range(200):
                assert twins.step() == "alone"
            assert not twins.ours[0].connected
            os.unlink(daemon.socket)
        asked.close()
        restart(daemon)
        twins.all_seeded()
        twins.agree()


def test_one_warning_when_it_is_lost_and_one_when_it_is_back(daemon):
    with daemon.connect() as client:
        twins = Twins(client, [{"mlp": 0.5}, {"mlp": 0.25}], TOKENS, linear)
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                kill(daemon)
                twins.until("alone")
                twins.step()
                restart(daemon)
                twins.all_seeded()
                twins.step()
            messages = [str(each.message) for each in caught if each.category is kasmina.ConnectionWarning]
            assert len(messages) == 2, messages
            assert "goes on without its seeds" in messages[0] and "the daemon is back" in messages[1]


def test_a_daemon_killed_while_layers_return_is_waited_for_again(start, kernels):
    daemon = start()
    with daemon.connect() as client:
        twins = Twins(client, [{"attention": 0.4, "mlp": 0.3}, {"mlp": 0.5}], TOKENS, linear)
        twins.step()
        kill(daemon)
        for _ in range(3):
            twins.until("alone")
            restart(daemon)
            # As soon as it has a session again, whatever of it is restored by then.
            settled(lambda: daemon.status()["sessions"])
            kill(daemon)
            twins.step()
        restart(daemon)
        twins.all_seeded()
        for _ in range(3):
            assert twins.step() == "seeded"
        twins.agree()


def test_a_ticket_of_before_is_refused_and_disturbs_nothing(daemon):
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(linear(), client, name="layer")
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        old = layer(torch.randn(TOKENS)).sum()
        kill(daemon)
        restart(daemon)
        settled(lambda: layer._arrived)
        new = layer(torch.randn(TOKENS)).sum()
        # Both sessions number their tickets from one: the old must not be taken for the new.
        with pytest.raises(kasmina.ConnectionLost) as caught:
            old.backward()
        assert not caught.value.in_flight and layer.connected
        new.backward()
        del old
        gc.collect()
        assert layer(torch.randn(TOKENS)).isfinite().all()


def test_what_is_changed_while_the_daemon_is_away_holds_afterwards(daemon):
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(linear(), client, name="layer", seeds=4)
        for seed, alpha in zip(layer.seeds, (0.2, 0.3, 0.1)):
            seed.graft("mlp", alpha=alpha, input_shape=TOKENS[1:])
        weights = [dict(seed.named_parameters())["up.weight"] for seed in layer.seeds[:3]]
        kill(daemon)
        settled(lambda: not client.connected)
        with torch.no_grad():
            weights[0].zero_()
        layer.seeds[0].alpha = 0.5
        layer.seeds[1].prune()
        with pytest.raises(kasmina.ConnectionLost):
            layer.seeds[3].graft("mlp")
        restart(daemon)
        settled(lambda: layer._arrived)
        x = torch.randn(TOKENS)
        y = layer(x)
        first, third = twin("mlp"), twin("mlp")
        with torch.no_grad():
            first.up.weight.zero_()
        truth = 0.4 * layer.host(x) + 0.5 * first(x) + 0.1 * third(x)
        torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-5)
        assert dict(layer.seeds[0].named_parameters())["up.weight"] is weights[0]
        assert [seed.kernel for seed in layer.seeds] == ["mlp", None, "mlp", None]
        assert [seed.state for seed in layer.seeds] == ["holding", "dormant", "holding", "dormant"]
        # The places are as good as before.
        layer.seeds[3].graft("attention", alpha=0.1)
        layer.seeds[1].graft("mlp", alpha=0.1)
        assert layer(x).isfinite().all() and all(seed.present for seed in layer.seeds)


def test_a_kernel_that_is_gone_stays_out(start, origin):
    daemon = start(origin, settings="[cache.sqlite]\nenabled = false\n")
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(linear(), client, name="layer", seeds=2)
        layer.seeds[0].graft("mlp", alpha=0.25, input_shape=TOKENS[1:])
        layer.seeds[1].graft("cold-0", alpha=0.25, input_shape=TOKENS[1:])
        kept = {name: value.clone() for name, value in layer.state_dict().items()}
        kill(daemon)
        (origin / "cold-0.pt2").unlink()
        restart(daemon)
        settled(lambda: layer._arrived)
        x, module = torch.randn(TOKENS), twin("mlp")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                y = layer(x)
                torch.testing.assert_close(y, 0.75 * layer.host(x) + 0.25 * module(x), rtol=1e-4, atol=1e-5)
        failures = [each for each in caught if each.category is kasmina.SeedFailureWarning]
        assert len(failures) == 1 and "kernel.not_found" in str(failures[0].message)
        assert layer.seeds[1].load_error.code == "kernel.not_found"
        assert layer.seeds[1].kernel is None and layer.seeds[1].state == "dormant"
        # What it had learned can still be saved.
        assert all(torch.equal(value, kept[name]) for name, value in layer.state_dict().items())
        layer.seeds[1].graft("mlp", alpha=0.25)
        assert layer.seeds[1].load_error is None
        layer(x).sum().backward()


def test_a_kernel_whose_origin_is_away_comes_when_it_can(start, origin):
    settings = '[cache.sqlite]\nenabled = false\n[origin.breaker]\nopen_for = "50ms"\nmax_open_for = "50ms"\n'
    daemon = start(origin, settings=settings)
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(linear(), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.25, input_shape=TOKENS[1:])
        with torch.no_grad():
            dict(layer.seeds[0].named_parameters())["down.bias"].add_(1.0)
        kill(daemon)
        away = origin.rename(origin.with_name("away"))
        restart(daemon)
        settled(lambda: layer._arrived)
        x = torch.randn(TOKENS)
        with pytest.warns(kasmina.SeedFailureWarning, match="until its kernel can be had"):
            assert torch.equal(layer(x), layer.host(x))
        assert isinstance(layer.seeds[0].load_error, kasmina.OriginError) and layer.connected
        away.rename(origin)
        settled(lambda: layer._arrived)
        module = twin("mlp")
        with torch.no_grad():
            module.down.bias.add_(1.0)
        torch.testing.assert_close(layer(x), 0.75 * layer.host(x) + 0.25 * module(x), rtol=1e-4, atol=1e-5)
        assert layer.seeds[0].load_error is None


def test_a_graft_that_nobody_waits_for_begins_again(start, origin):
    daemon = start(origin)
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(linear(), client, name="layer", seeds=2)
        layer.seeds[0].graft("mlp", alpha=0.25, input_shape=TOKENS[1:])
        came = []
        for seed, kernel in zip(layer.seeds, ("cold-0", "cold-1")):
            seed.graft(kernel, alpha=0.25, wait=False, on_live=came.append)
        kill(daemon)
        restart(daemon)
        settled(lambda: layer._arrived)

        def both():
            layer(torch.randn(TOKENS))
            return len(came) == 2

        settled(both)
        assert [seed.kernel for seed in layer.seeds] == ["cold-0", "cold-1"]
        assert [seed.loading for seed in layer.seeds] == [None, None]
        layer(torch.randn(TOKENS)).sum().backward()


def test_without_reconnecting_a_dead_daemon_stays_dead(daemon):
    before = threading.active_count()
    with kasmina.connect(str(daemon.socket), reconnect=False) as client:
        assert threading.active_count() == before
        layer = kasmina.torch.SeededLayer(linear(), client, name="layer")
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        kill(daemon)
        restart(daemon)
        x = torch.randn(TOKENS)
        with contextlib.suppress(kasmina.ConnectionLost):
            layer(x)
        assert torch.equal(layer(x), layer.host(x)) and not layer.connected
        with pytest.raises(kasmina.ConnectionLost):
            layer.seeds[0].alpha = 0.25
        assert daemon.status()["sessions"] == []


def test_a_client_that_is_closed_or_dropped_looks_for_no_daemon(daemon):
    before = threading.active_count()
    client = daemon.connect()
    client.close()
    settled(lambda: threading.active_count() == before)
    client = daemon.connect()
    kill(daemon)
    client.close()
    settled(lambda: threading.active_count() == before)
    restart(daemon)
    dropped = weakref.ref(daemon.connect())
    gc.collect()
    assert dropped() is None
    settled(lambda: threading.active_count() == before)
    settled(lambda: daemon.status()["sessions"] == [])


def test_a_daemon_that_leaves_in_order_is_followed_too(daemon):
    with daemon.connect() as client:
        twins = Twins(client, [{"mlp": 0.5}], TOKENS, linear)
        twins.step()
        kept = twins.ours[0](torch.randn(TOKENS)).sum()
        daemon.process.send_signal(signal.SIGTERM)
        x = torch.randn(TOKENS)
        with torch.no_grad():
            settled(lambda: torch.equal(twins.ours[0](x), twins.ours[0].host(x)))
        # What was run before has its backward still, and the daemon waits for it.
        kept.backward()
        daemon.process.wait(30)
        restart(daemon)
        twins.all_seeded()
        assert twins.taken["lost"] == 0
        twins.agree()


def test_a_lane_that_was_interrupted_for_good_is_made_anew(client):
    twins = Twins(client, [{"mlp": 0.5}], TOKENS, linear)
    twins.step()
    # Kept away until a step has seen it gone: the daemon lives, and it would be back at once.
    gate, connect = threading.Event(), client.connect
    client.connect = lambda: (gate.wait(60), connect())[1]
    twins.ours[0].remote.client._lane.close("the session was interrupted in the middle of a pass")
    twins.until("alone")
    gate.set()
    twins.all_seeded()
    twins.agree()


TRAINER = """
import sys, torch, warnings
torch.set_num_threads(1)
sys.path.insert(0, {python!r})
import kasmina.torch
warnings.simplefilter("ignore")
client = kasmina.connect({socket!r})
layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="other", seeds=1)
layer.seeds[0].graft("mlp", alpha=0.5, input_shape=(3, 8))
optimizer = torch.optim.AdamW(layer.parameters(), 1e-3)
told = None
while True:
    optimizer.zero_grad()
    try:
        x = torch.randn(4, 3, 8)
        y = layer(x)
        # Before the step, which changes the host.
        state = "alone" if torch.equal(y, layer.host(x)) else "seeded"
        y.square().mean().backward()
    except kasmina.ConnectionLost:
        continue
    optimizer.step()
    if state != told:
        told = state
        print(state, flush=True)
"""


def test_two_trainers_come_back_and_neither_disturbs_the_other(daemon):
    script = TRAINER.format(python=str(PYTHON), socket=str(daemon.socket))
    with daemon.connect() as client:
        twins = Twins(client, [{"mlp": 0.5}], TOKENS, linear)
        with ended(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)) as other:
            assert other.stdout.readline() == "seeded\n"
            twins.step()
            kill(daemon)
            twins.until("alone")
            assert other.stdout.readline() == "alone\n"
            restart(daemon)
            assert other.stdout.readline() == "seeded\n"
            twins.all_seeded()
            assert len(daemon.status()["sessions"]) == 2
            other.send_signal(signal.SIGKILL)
        settled(lambda: len(daemon.status()["sessions"]) == 1)
        for _ in range(3):
            assert twins.step() == "seeded"
        twins.agree()
