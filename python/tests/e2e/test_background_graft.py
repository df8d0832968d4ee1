"""Grafts that nobody waits for: training goes on, and the kernel joins it when it is ready."""

import shutil
import threading

import kasmina
import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import settled
from .modules import TOKENS
from .proxy import Proxy
from .servers import Urza

SETTINGS = '[cache.sqlite]\nenabled = false\n[origin.retry]\nattempts = 1\n'


@pytest.fixture
def catalogue(tmp_path, kernels):
    folder = tmp_path / "origin"
    folder.mkdir()
    for name in ("mlp", "attention"):
        shutil.copy(kernels / f"{name}.pt2", folder)
    shutil.copy(kernels / "mlp.pt2", folder / "late.pt2")
    return folder


@pytest.fixture
def slow(start, catalogue):
    """A daemon on a catalogue that a test can hold back."""
    server = Urza(catalogue)
    server.start()
    try:
        with Proxy(("127.0.0.1", server.port)) as proxy:
            yield start(catalogue, settings=SETTINGS, origin=server.settings(proxy.port, "60s")), proxy
    finally:
        server.close()


def layered(client, name="layer", kernel=None):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name=name, seeds=1, input_shape=TOKENS[1:])
    if kernel is not None:
        layer.seeds[0].graft(kernel, alpha=0.5)
    return layer


def step(layer, optimizer):
    optimizer.zero_grad()
    loss = (layer(torch.randn(TOKENS)) - 1).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def until_live(layer, optimizer):
    """Steps until the kernel is in."""
    settled(lambda: step(layer, optimizer).isfinite() and layer.seeds[0].loading is None)


def test_training_goes_on_until_the_kernel_is_there(slow):
    daemon, proxy = slow
    with daemon.connect() as client:
        layer = layered(client)
        seed, optimizer, told = layer.seeds[0], torch.optim.SGD(layer.parameters(), lr=0.01), []

        def live(seed):
            told.append(seed.kernel)
            optimizer.add_param_group({"params": list(seed.parameters())})

        proxy.set("hang")
        seed.graft("late", alpha=0.5, wait=False, on_live=live)
        assert proxy.hanging.wait(20)
        for _ in range(50):
            step(layer, optimizer)
        assert seed.loading == "late" and seed.kernel is None and seed.state == "loading" and not told
        with daemon.operator() as operator:
            report = operator.seeds()["seeds"][0]
            assert (report["kernel"], report["loading"]["kernel"], report["loading"]["stage"]) == (None, "late", "loading")
            place = "{session}/{layer}/{seed}".format(**report)
            page = operator.why(place)
            assert page["kernel"] == "late" and page["seeds"] == [report] and page["holders"] == []
        # The session answers meanwhile, and no pass came to where it might have waited.
        assert layer.remote.stats(0)["executions"] == 0
        assert [session["supply_waits"] for session in daemon.status()["sessions"]] == [0]
        proxy.set(None)

        def stages():
            with daemon.operator() as operator:
                return [holder["stage"] for holder in operator.why(place)["holders"]]

        # What is ready and not taken yet is held too, and says for whom.
        settled(lambda: stages() == ["ready"])
        until_live(layer, optimizer)
        assert stages() == ["live"]
        assert told == ["late"] and seed.kernel == "late" and seed.alpha == 0.5 and seed.state == "holding"
        before = [parameter.clone() for parameter in seed.parameters()]
        step(layer, optimizer)
        assert any(not torch.equal(a, b) for a, b in zip(before, seed.parameters())), "it is trained"


def test_the_old_kernel_runs_until_the_new_one_is_ready(slow):
    daemon, proxy = slow
    with daemon.connect() as client:
        layer = layered(client, kernel="mlp")
        seed, x = layer.seeds[0], torch.randn(TOKENS)
        old = layer(x).detach()
        proxy.set("hang")
        seed.graft("attention", alpha=1.0, wait=False)
        assert proxy.hanging.wait(20)
        executions = layer.remote.stats(0)["executions"]
        for _ in range(10):
            assert torch.equal(layer(x).detach(), old), "nothing has changed yet"
        settled(lambda: layer.remote.stats(0)["executions"] >= executions + 10)
        assert [session["supply_waits"] for session in daemon.status()["sessions"]] == [0]
        assert seed.kernel == "mlp" and seed.loading == "attention" and seed.state == "holding"
        # A forward whose kernel is gone by the time of its backward finishes on that kernel.
        y = layer(x.requires_grad_())
        proxy.set(None)

        def replaced():
            with torch.no_grad():
                layer(x)
            return seed.loading is None

        settled(replaced)
        y.sum().backward()
        assert x.grad.isfinite().all() and seed.kernel == "attention"
        reference = layered(client, name="waited")
        reference.host.load_state_dict(layer.host.state_dict())
        reference.seeds[0].graft("attention", alpha=1.0)
        reference.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), reference(x))


def test_a_kernel_that_does_not_come_is_told_and_costs_nothing(daemon):
    with daemon.connect() as client:
        layer = layered(client)
        seed, optimizer = layer.seeds[0], torch.optim.SGD(layer.parameters(), lr=0.01)
        seed.graft("no-such-kernel", alpha=0.5, wait=False, on_live=lambda seed: pytest.fail("it never lives"))
        with pytest.warns(kasmina.SeedFailureWarning, match="no-such-kernel"):
            until_live(layer, optimizer)
        assert isinstance(seed.load_error, kasmina.KasminaError) and seed.load_error.code == "kernel.not_found"
        assert seed.kernel is None and seed.state == "dormant"
        x = torch.randn(TOKENS)
        assert torch.equal(layer(x), layer.host(x))
        seed.graft("mlp", alpha=0.5)
        assert seed.load_error is None and not torch.equal(layer(x), layer.host(x))


def test_what_is_pruned_while_it_loads_does_not_come(slow):
    daemon, proxy = slow
    with daemon.connect() as client:
        layer = layered(client)
        seed = layer.seeds[0]
        proxy.set("hang")
        seed.graft("late", alpha=0.5, wait=False)
        assert proxy.hanging.wait(20)
        seed.prune()
        proxy.set(None)
        assert seed.loading is None and seed.state == "dormant"
        with pytest.raises(kasmina.KasminaError) as refused:
            layer.remote.finish_graft(0)
        assert refused.value.code == "seed.not_loading" and "begin one first" in str(refused.value)
        # The load itself ends and stays in memory for the next.
        seed.graft("late", alpha=0.5)
        assert seed.kernel == "late"


def test_a_later_graft_takes_an_earlier_ones_place(slow):
    daemon, proxy = slow
    with daemon.connect() as client:
        layer = layered(client, name="first", kernel="mlp")
        seed, optimizer = layer.seeds[0], torch.optim.SGD(layer.parameters(), lr=0.01)
        proxy.set("hang")
        seed.graft("late", alpha=0.5, wait=False)
        assert proxy.hanging.wait(20)
        seed.graft("mlp", alpha=0.25)
        assert seed.loading is None and seed.kernel == "mlp" and seed.alpha == 0.25
        proxy.set(None)
        for _ in range(20):
            step(layer, optimizer)
        assert seed.kernel == "mlp"


@pytest.mark.parametrize("gradients", (False, True))
def test_threads_that_call_a_layer_while_kernels_come_and_go(client, gradients):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, input_shape=TOKENS[1:])
    x = torch.randn(TOKENS)
    failed, over = [], threading.Event()

    def work():
        while not over.is_set():
            try:
                with torch.set_grad_enabled(gradients):
                    y = layer(x)
                if gradients:
                    torch.autograd.grad(y.sum(), list(layer.host.parameters()))
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for n in range(30):
            layer.seeds[0].graft(("mlp", "drop", "attention")[n % 3], alpha=0.5, wait=False)
            settled(lambda: layer.seeds[0].loading is None)
            if n % 5 == 4:
                layer.seeds[0].prune(embargo=0)
                layer.seeds[0].graft("mlp", alpha=0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == [] and layer.seeds[0].load_error is None
