"""Back-pressure: forwards that wait until there is room for what they leave for their backwards."""

import asyncio
import gc
import threading

import numpy as np
import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .conftest import settled
from .modules import TOKENS, twin
from .test_equality import close

TWO = "[engine]\nmax_tickets_per_layer = 2\n"
#: Longer than any test runs: who waits so long has not been woken by room.
LONG_S = 120.0


def connect(daemon, wait_for_room_s):
    return kasmina.connect(str(daemon.socket), wait_for_room_s=wait_for_room_s)


def make(client):
    torch.manual_seed(3)
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, "layer", 1, "residual", TOKENS[1:])
    layer.seeds[0].graft("mlp", alpha=0.5)
    return layer


def test_a_coroutine_waits_while_another_has_its_backward(start):
    daemon = start(settings=TWO)
    with connect(daemon, LONG_S) as client:
        layer, module = make(client), twin("mlp")
        x = torch.randn(TOKENS)

        async def step(ready):
            y = await layer.forward_async(x)
            # The first two hold all that there is until the others have been refused.
            await ready.wait()
            y.square().sum().backward()

        async def main():
            ready = asyncio.Event()
            steps = [asyncio.create_task(step(ready)) for _ in range(6)]
            while daemon_refusals(daemon) < 4:
                await asyncio.sleep(0)
            ready.set()
            await asyncio.gather(*steps)

        asyncio.run(main())
        theirs = layer.host(x) + 0.5 * module(x)
        truth = torch.autograd.grad(6 * theirs.square().sum(), list(module.parameters()))
        ours = [p.grad for p in layer.seeds[0].parameters()]
        for a, b in zip(ours, truth):
            close(a, b, "gradient", 1e-4)
        assert daemon.status()["sessions"][0]["tickets"] == 0


def test_a_thread_waits_while_another_has_its_backward(start):
    daemon = start(settings=TWO)
    with connect(daemon, LONG_S) as client:
        layer = make(client)
        x = torch.randn(TOKENS)
        held = [layer(x), layer(x)]
        outputs = []
        waiting = [
            threading.Thread(target=lambda: outputs.append(layer(x).detach())),
            threading.Thread(target=lambda: outputs.append(layer.submit(x).result().detach())),
        ]
        for thread in waiting:
            thread.start()
        settled(lambda: daemon_refusals(daemon) >= 2)
        assert not outputs
        truth = held[0].detach()
        for y in held:
            y.sum().backward()
        for thread in waiting:
            thread.join()
        assert len(outputs) == 2 and all(torch.equal(y, truth) for y in outputs)


def test_numpy_layers_wait_too(start):
    daemon = start(settings=TWO)
    with connect(daemon, LONG_S) as client:
        layer = client.open_layer("plain", 1, "residual", TOKENS[1:])
        layer.graft(0, "mlp", 0.5, TOKENS[1:])
        x = np.ones(TOKENS, np.float32)
        held = [layer.forward(x, train=True, gradients=True) for _ in range(2)]
        outputs = []
        thread = threading.Thread(
            target=lambda: outputs.append(layer.forward(x, train=True, gradients=True).output.copy())
        )
        thread.start()
        settled(lambda: daemon_refusals(daemon) >= 1)
        del held
        thread.join()
        assert len(outputs) == 1


@pytest.mark.parametrize("wait_for_room_s", [0.0, 0.05])
def test_without_room_the_refusal_says_which_bound_it_is(start, wait_for_room_s):
    daemon = start(settings=TWO)
    with connect(daemon, wait_for_room_s) as client:
        layer = make(client)
        x = torch.randn(TOKENS)
        held = [layer(x), layer(x)]
        for call in (lambda: layer(x), lambda: layer.submit(x).result(), lambda: asyncio.run(layer.forward_async(x))):
            with pytest.raises(kasmina.SessionError, match="engine.max_tickets_per_layer") as refusal:
                call()
            assert refusal.value.code == "session.quota"
        tries = daemon_refusals(daemon)
        assert tries == 3 if wait_for_room_s == 0.0 else tries > 3
        del held
        layer(x).sum().backward()


def test_a_pause_that_makes_no_sense_is_refused(daemon):
    for wait in (-1.0, float("nan"), float("inf")):
        with pytest.raises(kasmina.UsageError, match="wait_for_room_s"):
            connect(daemon, wait)


def daemon_refusals(daemon):
    """How many submissions the daemon has refused."""
    return sum(session["refused_passes"] for session in daemon.status()["sessions"])


#: Heap for some passes of FULL, and not for many.
ARENA = 4 << 20
FULL = (4000, *TOKENS[1:])


def crowd(layer, x):
    """Passes that leave no room for another."""
    passes = []
    with pytest.raises(kasmina.ArenaFull):
        while True:
            passes.append(layer(x))
    return passes


def test_room_in_the_arena_is_waited_for(daemon):
    with kasmina.connect(str(daemon.socket), arena_bytes=ARENA) as client:
        layer = make(client)
        x = torch.randn(FULL, requires_grad=True)
        heap, refused = client.connection._heap, threading.Event()
        gc.collect()
        free = heap.free_bytes
        passes = crowd(layer, x)
        client.connection.wait_for_room_s = LONG_S

        class Watched(type(heap)):
            """Tells when it has had no room."""

            def allocate(self, count):
                try:
                    return super().allocate(count)
                except kasmina.ArenaFull:
                    refused.set()
                    raise

        heap.__class__ = Watched
        for call in (layer, lambda v: asyncio.run(layer.forward_async(v))):
            refused.clear()
            found = []
            waiting = threading.Thread(target=lambda: found.append(call(x).detach().clone()))
            waiting.start()
            assert refused.wait(60)
            passes.clear()
            waiting.join()
            close(found[0], (layer.host(x) + 0.5 * twin("mlp")(x)).detach(), "output", 1e-4)
            client.connection.wait_for_room_s = 0.0
            # Room that came late would keep the next from being refused.
            found.clear()
            settled(lambda: gc.collect() is not None and heap.free_bytes == free)
            passes = crowd(layer, x)
            client.connection.wait_for_room_s = LONG_S
        # What could never have room is not waited for, and what would help is said.
        passes.clear()
        with pytest.raises(kasmina.ArenaFull, match="connect with a larger arena_bytes, of which the daemon gives"):
            layer(torch.randn(100000, *TOKENS[1:]))


def test_an_arena_that_cannot_be_larger(start):
    daemon = start(settings='[data_plane]\narena_bytes = "4MiB"\n')
    with kasmina.connect(str(daemon.socket), arena_bytes=1 << 40) as client:
        with pytest.raises(kasmina.ArenaFull, match="use a smaller batch: .* the daemon gives 4194304 at most"):
            make(client)(torch.randn(100000, *TOKENS[1:]))
