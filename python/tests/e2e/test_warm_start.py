"""Kernels that are in memory before anybody asks, because the configuration or their past says so."""

import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import settled
from .faults import ALONE, BREAKERS, QUICK, holds
from .modules import TOKENS
from .proxy import Proxy
from .servers import Postgres, Urza
from .trainer import Trainer


def resident(daemon):
    with daemon.operator() as operator:
        return {entry["kernel"]: entry for entry in operator.cache()["kernels"]}


def use(daemon, kernel, times):
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="uses", seeds=1)
        for _ in range(times):
            layer.seeds[0].graft(kernel, alpha=0.0, input_shape=TOKENS[1:])
            layer.seeds[0].prune()


def warming(planned, loaded, failed=0, retrying=0, done=True, planning=False):
    """What the status says of warming."""
    report = {"planned": planned, "loaded": loaded, "failed": failed, "retrying": retrying}
    return report | {"done": done, "planning": planning}


def restart(daemon):
    assert daemon.terminate() == 0
    daemon.process = daemon.start()


def test_what_the_configuration_lists_and_pins_is_warmed_without_being_asked_for(start):
    settings = '[cache]\nwarm = ["mlp", "no-such-kernel"]\npinned = ["attention"]\n'
    daemon = start(settings=settings)
    settled(lambda: daemon.status()["warming"] == warming(planned=3, loaded=2, failed=1))
    kernels = resident(daemon)
    assert {name: entry["pinned"] for name, entry in kernels.items()} == {"mlp": False, "attention": True}
    assert all(entry["hits"] == 0 for entry in kernels.values())


@pytest.mark.parametrize("kind", [None, Postgres], ids=["SQLite", "PostgreSQL"])
def test_what_was_used_most_is_warmed_first_after_a_restart(start, serve, origin, kind):
    settings = serve(kind).settings() + ALONE if kind else ""
    daemon = start(origin, settings="[cache]\nwarm_most_used = 2\n" + settings)
    for kernel, times in [("cold-0", 1), ("cold-1", 5), ("cold-2", 3), ("cold-3", 1)]:
        use(daemon, kernel, times)
    holds(daemon, kind.tier if kind else "sqlite", 4)
    restart(daemon)
    settled(lambda: daemon.status()["warming"] == warming(planned=2, loaded=2))
    assert resident(daemon).keys() == {"cold-1", "cold-2"}


def test_the_daemon_serves_while_it_warms(start, serve, origin):
    urza = serve(lambda: Urza(origin))
    with Proxy(("127.0.0.1", urza.port)) as proxy:
        settings = '[cache]\nwarm = ["cold-0"]\n' + ALONE + BREAKERS
        proxy.set("hang")
        # Ready, though what it warms does not come.
        daemon = start(origin, settings=settings, origin=urza.settings(proxy.port, timeout="60s"))
        assert proxy.hanging.wait(20)
        settled(lambda: daemon.status()["warming"] == warming(planned=1, loaded=0, done=False))
        with daemon.connect() as client:
            layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="early", seeds=1)
            assert layer(torch.randn(TOKENS)).isfinite().all()
        proxy.set(None)
        settled(lambda: daemon.status()["warming"]["done"])
        with Trainer(daemon) as trainer:
            trainer.steps()
        assert "cold-0" in resident(daemon)


def test_a_node_that_is_up_before_its_network_is_warmed_when_that_comes(start, serve, origin):
    urza = serve(lambda: Urza(origin))
    with Proxy(("127.0.0.1", urza.port)) as proxy:
        proxy.set("refuse")
        settings = '[cache]\nwarm = ["cold-0", "cold-1"]\n' + ALONE + BREAKERS + QUICK
        daemon = start(origin, settings=settings, origin=urza.settings(proxy.port))
        settled(lambda: daemon.status()["warming"] == warming(planned=2, loaded=0, retrying=2, done=False))
        proxy.set(None)
        settled(lambda: daemon.status()["warming"] == warming(planned=2, loaded=2))
    assert resident(daemon).keys() == {"cold-0", "cold-1"}
