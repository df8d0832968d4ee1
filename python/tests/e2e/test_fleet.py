"""Two daemons that share a Redis: what one has forgotten everywhere, the other forgets too."""

import kasmina
import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import on_disk, settled
from .modules import TOKENS
from .servers import Redis


@pytest.fixture
def redis():
    server = Redis().start()
    yield server
    server.close()


def resident(daemon):
    with daemon.operator() as operator:
        return [entry["kernel"] for entry in operator.cache()["kernels"]]


def in_redis(server):
    return [key for key in server.ask("KEYS", "kasmina:v1:{*}").split() if key]


def test_a_kernel_evicted_from_the_fleet_is_forgotten_by_every_node(start, redis):
    settings = (
        f'[cache.redis]\nurl = "redis://127.0.0.1:{redis.port}"\npassword_file = "{redis.password_file}"\n'
    )
    one, two = start(settings=settings), start(settings=settings)
    for daemon in (one, two):
        settled(lambda: "listening to other nodes" in daemon.text())
    with one.operator() as operator:
        operator.warm(["mlp"])
    settled(lambda: resident(one) == ["mlp"] and in_redis(redis) == ["kasmina:v1:{mlp}"])
    x = torch.randn(TOKENS)
    with two.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        before = layer(x).detach()
        # The node that found it in Redis keeps a copy of its own, for when Redis is away.
        settled(lambda: on_disk(one) == on_disk(two) == ["mlp"])

        with one.operator() as operator:
            assert operator.evict("mlp", fleet=True)["evicted"] == ["mlp"]
        assert resident(one) == [] and on_disk(one) == [] and in_redis(redis) == []
        settled(lambda: on_disk(two) == [])
        with two.operator() as operator:
            assert operator.why("mlp")["evictions"][0]["by"].startswith("node ")
        # What a seed uses goes on, and whoever grafts now loads anew.
        assert torch.equal(layer(x), before)
        loads = two.text().count("kernel loaded")
        other = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="other", seeds=1)
        other.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        assert two.text().count("kernel loaded") == loads + 1
        assert torch.equal(layer(x), before)


def test_a_node_that_may_have_missed_an_announcement_trusts_nothing_it_has(start, redis):
    settings = (
        f'[cache.redis]\nurl = "redis://127.0.0.1:{redis.port}"\npassword_file = "{redis.password_file}"\n'
    )
    one, two = start(settings=settings), start(settings=settings)
    for daemon in (one, two):
        settled(lambda: "listening to other nodes" in daemon.text())

    def heard():
        with two.operator() as operator:
            fleet = operator.cache()["fleet"]
        return fleet["heard"], fleet["gaps"]

    def announce():
        with one.operator() as operator:
            operator.evict("attention", fleet=True)

    x = torch.randn(TOKENS)
    with two.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        before = layer(x).detach()
        announce()
        settled(lambda: heard() == (1, 0))
        # The log is lost, and with it whatever this node had not read.
        redis.ask("FLUSHALL")
        announce()
        settled(lambda: heard() == (2, 1))
        assert resident(two) == []
        with two.operator() as operator:
            assert [(kernel["kernel"], kernel["holders"]) for kernel in operator.cache()["leaving"]] == [("mlp", 1)]
            why = operator.why("mlp")
        assert why["evictions"][0]["reason"] == "invalidated" and "gap" in why["evictions"][0]["by"]
        assert torch.equal(layer(x), before), "what a seed uses goes on"
        layer.seeds[0].prune()
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        assert two.text().count("kernel loaded") == 2
        with two.operator() as operator:
            assert operator.cache()["leaving"] == []


def test_without_a_redis_there_is_no_fleet(daemon):
    with daemon.operator() as operator, pytest.raises(kasmina.KasminaError) as raised:
        operator.evict("mlp", fleet=True)
    assert raised.value.code == "cache.no_fleet"
    assert "cache.redis.url" in str(raised.value)
