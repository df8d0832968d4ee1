"""Passes that are under way while the trainer goes on."""

import asyncio
import gc
import threading

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .conftest import settled
from .modules import TOKENS
from .test_equality import close


@pytest.fixture
def layers(client):
    torch.manual_seed(1)
    made = []
    for number, kernel in enumerate(("mlp", "attention", "mlp")):
        layer = kasmina.torch.SeededLayer(
            nn.Linear(8, 8), client, f"layer-{number}", 1, "residual", TOKENS[1:]
        )
        layer.seeds[0].graft(kernel, alpha=0.5)
        made.append(layer)
    return made


def tickets(daemon):
    return sum(session["tickets"] for session in daemon.status()["sessions"])


def gradients(layers, outputs, x):
    wanted = [x] + [parameter for layer in layers for parameter in layer.parameters()]
    return torch.autograd.grad(sum(y.square().sum() for y in outputs), wanted)


def test_several_layers_in_flight_on_one_session(client, layers):
    x = torch.randn(TOKENS, requires_grad=True)
    truth = [layer(x) for layer in layers]
    pending = [layer.submit(x) for layer in layers]
    assert len(client.connection._lane._awaited) + len(client.connection._lane._done) == len(layers), "published, none waited for"
    ours = [one.result() for one in reversed(pending)][::-1]
    for a, b in zip(ours, truth):
        assert torch.equal(a, b)
    # Autograd adds them up in the order in which the outputs were asked for.
    for a, b in zip(gradients(layers, ours, x), gradients(layers, truth, x)):
        close(a, b, "gradient", 1e-6)
    assert pending[0].result() is pending[0].result() and pending[0].done() and not pending[0].cancel()
    assert [(layer.stats()["synchronous"], layer.stats()["asynchronous"]) for layer in layers] == [(1, 1)] * 3


def test_more_than_the_ring_holds(daemon, layers):
    x = torch.randn(TOKENS)
    with torch.no_grad():
        truth = layers[0](x)
        pending = [layers[0].submit(x) for _ in range(150)]
        assert all(torch.equal(one.result(), truth) for one in pending)
    assert tickets(daemon) == 0
    assert layers[0].stats()["asynchronous"] == 150


def test_awaiting_lets_the_loop_go_on(layers):
    x = torch.randn(TOKENS, requires_grad=True)
    truth = [layer(x) for layer in layers]

    async def main():
        ours = await asyncio.gather(*(layer.forward_async(x) for layer in layers))
        again = await layers[0].submit(x)
        return ours, again

    ours, again = asyncio.run(main())
    assert torch.equal(again, truth[0])
    for a, b in zip(ours, truth):
        assert torch.equal(a, b)
    for a, b in zip(gradients(layers, ours, x), gradients(layers, truth, x)):
        close(a, b, "gradient", 1e-6)


def test_callbacks_and_waits_with_a_limit(layers):
    x = torch.randn(TOKENS)
    called = threading.Event()
    seen = []
    one = layers[0].submit(x)
    one.add_done_callback(lambda pending: (seen.append(pending), called.set()))
    assert called.wait(60) and seen == [one] and one.done()
    assert one.exception() is None
    # A callback that fails is told and stops nobody.
    two, three = layers[0].submit(x), layers[0].submit(x)
    called.clear()
    two.add_done_callback(lambda _: 1 / 0)
    three.add_done_callback(lambda _: called.set())
    assert called.wait(60)
    pending = layers[0].submit(x)
    try:
        y = pending.result(timeout=0)
    except TimeoutError:
        y = pending.result()
    assert torch.equal(y, layers[0](x))


def test_dropped_passes_give_everything_back(daemon, client, layers):
    x = torch.randn(TOKENS, requires_grad=True)
    for layer in layers * 5:
        layer.submit(x)
    gc.collect()
    with torch.no_grad():
        layers[0](x)
        layers[0](x)
    assert tickets(daemon) == 0
    lane = client.connection._lane
    assert (lane._awaited, lane._done, lane._abandoned) == ({}, {}, set())
    assert client.connection._heap.free_bytes == client.connection._heap.size


def test_x_may_change_while_the_pass_is_under_way(layers):
    first, second = layers[0], layers[1]
    with torch.no_grad():
        x = first(torch.randn(TOKENS))  # in shared memory, where the daemon could read it in place
        truth = second(x)
        pending = second.submit(x)
        x.zero_()
        assert torch.equal(pending.result(), truth)


def test_a_graft_waits_for_what_was_published(layers):
    layer = layers[0]
    x = torch.randn(TOKENS, requires_grad=True)
    truth = layer(x)
    pending = layer.submit(x)
    layer.seeds[0].graft("attention", alpha=0.5)
    y = pending.result()
    assert torch.equal(y, truth)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(truth.sum(), x)[0], "its own backward")


def test_threads_submit_and_wait(layers):
    failed = []
    x = torch.randn(TOKENS)
    with torch.no_grad():
        truth = [layer(x) for layer in layers]

    def work(number):
        for _ in range(40):
            moved = x.clone().requires_grad_()
            pending = [layer.submit(moved) for layer in layers]
            for one, right in zip(pending, truth):
                y = one.result()
                if not torch.equal(y, right):
                    failed.append(number)
                y.sum().backward()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_daemon_that_dies_before_it_has_looked(daemon, layers):
    x = torch.randn(TOKENS, requires_grad=True)
    layers[0](x)
    daemon.process.send_signal(19)  # stopped: it will not answer
    settled(daemon.stopped)
    pending = layers[0].submit(x)
    with pytest.raises(TimeoutError):
        pending.result(timeout=0.01)
    daemon.kill()
    # It had not taken the pass out of the ring, so nothing of it was run and the host's output is whole.
    with pytest.warns(RuntimeWarning, match="goes on without"):
        y = pending.result()
    assert torch.equal(y, layers[0].host(x))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(layers[0].submit(x).result(), layers[0].host(x))
