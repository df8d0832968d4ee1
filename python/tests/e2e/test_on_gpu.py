"""Trainers whose tensors lie on the daemon's GPU: what orders the two, what is told late, and what is refused.

What layers compute there is tested by the suites that scripts/test runs with KASMINA_TRAINER_DEVICE.
"""

import contextlib
import copy
import ctypes
import gc
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from kasmina._cuda import Gpu, Signals
from kasmina._layout import HEADER_WORDS
from . import on_gpu
from .conftest import settled
from .modules import TOKENS, twin

pytestmark = [
    pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning"),
    pytest.mark.skipif(torch.cuda.is_available() or bool(on_gpu.DEVICE), reason="it is about the stand-in alone"),
]
WAIT = Signals.wait


@pytest.fixture(autouse=True)
def stand_in(driver, monkeypatch):
    on_gpu.use_stand_in(driver, monkeypatch.setattr)


@pytest.fixture
def streams_alone(monkeypatch):
    """Has PyTorch's own thread not wait for its stream, as with a real GPU. What it computes is then of no use here."""

    def begin():
        monkeypatch.setattr(Signals, "wait", WAIT)

    return begin


def opened(daemon, **options):
    return kasmina.connect(str(daemon.socket), device="cuda:0", arena_bytes=8 << 20, **options)


def layer_on(client, blend="convex", kernels=("mlp",), alpha=0.25):
    torch.manual_seed(3)
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=len(kernels), blend=blend)
    for seed, kernel in zip(layer.seeds, kernels):
        seed.graft(kernel, alpha=alpha, input_shape=TOKENS[1:])
    return layer


def composed(layer, x, blend, alpha=0.25):
    h, k = layer.host(x), twin("mlp")(x)
    return {"convex": (1 - alpha) * h + alpha * k, "residual": h + alpha * k, "multiply": h * (1 + alpha * torch.tanh(k - x))}[blend]


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
def test_training_equals_the_composition(start_on_cuda, blend):
    with opened(start_on_cuda()) as client:
        layer = layer_on(client, blend)
        assert {type(parameter) for parameter in layer.seeds[0].parameters()} == {nn.Parameter}
        host, kernel = copy.deepcopy(layer.host), twin("mlp")
        ours = torch.optim.AdamW(layer.parameters(), 1e-2)
        theirs = torch.optim.AdamW([*host.parameters(), *kernel.parameters()], 1e-2)
        for _ in range(70):  # more than a ring has places
            x = torch.randn(TOKENS, requires_grad=True)
            twins_x = x.detach().clone().requires_grad_()
            y = layer(x)
            h, k = host(twins_x), kernel(twins_x)
            mixed = {"convex": 0.75 * h + 0.25 * k, "residual": h + 0.25 * k,
                     "multiply": h * (1 + 0.25 * torch.tanh(k - twins_x))}[blend]
            torch.testing.assert_close(y, mixed, rtol=1e-4, atol=1e-5)
            for output in (y, mixed):
                output.square().sum().backward()
            torch.testing.assert_close(x.grad, twins_x.grad, rtol=1e-3, atol=1e-4)
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
        assert layer.last_failures == {}


def test_nobody_but_streams_waits_for_the_daemon(start_on_cuda, streams_alone):
    daemon = start_on_cuda()
    with opened(daemon) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS, requires_grad=True)
        layer(x).sum().backward()  # planned
        assert layer.last_failures == {}
        streams_alone()
        daemon.process.send_signal(signal.SIGSTOP)
        settled(daemon.stopped)
        for _ in range(5):
            layer(x).sum().backward()
        assert len(layer._outstanding) == 10
        lane = client.connection._lane
        assert not lane.finished(layer._outstanding[-1].sequence)
        daemon.process.send_signal(signal.SIGCONT)
        client.connection.gpu.synchronize()
        assert layer.last_failures == {} and not layer._outstanding
        assert layer.seeds[0].stats()["executions"] == 6


def test_the_daemon_waits_for_what_a_stream_has_not_come_to(start_on_cuda, streams_alone):
    with opened(start_on_cuda()) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS)
        expected = layer(x)
        streams_alone()
        lane = client.connection._lane
        for _ in range(20):
            with held(client.connection.gpu, 0) as let_go, torch.no_grad():
                # The stream stands still; what it would have written to x comes later.
                begun = layer.submit(torch.full(TOKENS, torch.nan))
                started = begun._started
                settled(lambda: lane._words[HEADER_WORDS["submission_head"]] > started._sequence)
                offset = started._submission[7][0]
                place = on_gpu.over(None, client.connection._base + offset, torch.float32, TOKENS, None)
                assert place.isnan().all() and not begun.done()
                place.copy_(x)
                let_go()
                started.complete()
                torch.testing.assert_close(started.settle(layer.host(x)), expected)


@contextlib.contextmanager
def held(gpu, stream):
    """Has a stream stand still until it is let go."""
    word = np.zeros(512, np.uint64)
    gpu.call("cuMemHostRegister_v2", word.ctypes.data, word.nbytes, 0)
    try:
        gpu.call("cuStreamWaitValue64_v2", stream, word.ctypes.data, 1, 0)
        yield lambda: word.__setitem__(0, 1)
    finally:
        word[0] = 1
        gpu.synchronize()
        gpu.call("cuMemHostUnregister", word.ctypes.data)


def words_of(client, sequence):
    """The words of a submission: whether it is ready, whether it is done, and the rest."""
    words = client.connection._lane._words
    ready, done, rest = (words[HEADER_WORDS[name] + sequence % 64] for name in ("ready", "done", "rest"))
    return ready > sequence, done > sequence, np.uint32(rest).view(np.float32)


def test_a_stream_waits_for_the_others_of_its_session(start_on_cuda, streams_alone, monkeypatch):
    with opened(start_on_cuda()) as client:
        layer, gpu = layer_on(client), client.connection.gpu
        x = torch.randn(TOKENS)
        layer(x)
        streams = [ctypes.c_void_p() for _ in range(2)]
        for stream in streams:
            gpu.call("cuStreamCreateWithPriority", ctypes.byref(stream), 1, 0)
        streams_alone()
        monkeypatch.setattr(kasmina.torch._gpu, "current_stream", lambda number: streams[0].value)
        layer(x)
        monkeypatch.setattr(kasmina.torch._gpu, "current_stream", lambda number: streams[1].value)
        with held(gpu, streams[0]) as let_go:
            layer(x)
            sequence = layer._outstanding[-1].sequence
            assert not gpu.is_idle(streams[1]) and words_of(client, sequence)[:2] == (False, False)
            let_go()
            assert layer.last_failures == {} and words_of(client, sequence) == (True, True, 0.75)


def test_what_is_under_way_is_done_before_a_session_is_closed(start_on_cuda, streams_alone):
    client = opened(start_on_cuda())
    layer = layer_on(client)
    x = torch.randn(TOKENS, requires_grad=True)
    layer(x).sum().backward()
    streams_alone()
    for _ in range(20):
        layer(x).sum().backward()
    passed = list(layer._outstanding)
    client.close()
    client.connection.gpu.synchronize()
    for each in passed[-20:]:
        assert words_of(client, each.sequence) == (True, True, 1.0 if each.is_backward else 0.75)


def test_a_session_that_nobody_has_any_more_ends_when_its_passes_are_done(start_on_cuda, streams_alone):
    daemon = start_on_cuda()
    client = opened(daemon)
    layer, gpu = layer_on(client), client.connection.gpu
    x = torch.randn(TOKENS)
    with torch.no_grad():
        layer(x)
    assert layer.last_failures == {}
    streams_alone()
    with held(gpu, 0) as let_go, torch.no_grad():
        y = layer(x)
        sequence, words = layer._outstanding[-1].sequence, client.connection._lane._words
        layer = client = None
        gc.collect()
        let_go()
        gpu.synchronize()
    done, rest = (words[HEADER_WORDS[name] + sequence % 64] for name in ("done", "rest"))
    assert done > sequence and np.uint32(rest).view(np.float32) == 0.75 and y.shape == x.shape
    settled(lambda: daemon.status()["sessions"] == [])


def test_a_forked_child_writes_none_of_its_parents_words(start_on_cuda, streams_alone):
    daemon = start_on_cuda()
    with opened(daemon) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS)
        layer(x)
        assert layer.last_failures == {}
        streams_alone()
        daemon.process.send_signal(signal.SIGSTOP)
        settled(daemon.stopped)
        layer(x)
        sequence = layer._outstanding[-1].sequence
        child = os.fork()
        if child == 0:
            try:
                client.close()
                layer = None
                gc.collect()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert not words_of(client, sequence)[1]
        daemon.process.send_signal(signal.SIGCONT)
        assert layer.last_failures == {} and words_of(client, sequence) == (True, True, 0.75)


def test_many_passes_ahead_wait_for_room_in_the_arena(start_on_cuda, streams_alone):
    with opened(start_on_cuda()) as client:
        layer = kasmina.torch.SeededLayer(nn.Identity(), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.25, input_shape=TOKENS[1:])
        x = torch.randn(4096, *TOKENS[1:])  # 0.4 MB in, as much out, of 8
        layer(x)
        streams_alone()
        with torch.no_grad():
            for _ in range(30):
                layer(x)
        assert layer.last_failures == {}


def test_a_submission_that_was_interrupted_spoils_no_other(start_on_cuda, monkeypatch):
    with opened(start_on_cuda()) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS)
        expected, lane = layer(x), client.connection._lane
        send = lane.signals.send

        def interrupted(sequence):
            send(sequence)
            raise KeyboardInterrupt

        lane.signals.send = interrupted
        with pytest.raises(KeyboardInterrupt):
            layer(x)
        lane.signals.send = send
        before = lane._tail
        # Nobody waits for what was never published.
        lane.drain(60.0)
        assert not lane.wait_for_oldest()
        torch.testing.assert_close(layer(x), expected)
        assert lane._tail >= before + 2 and layer.last_failures == {}


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
def test_streams_go_on_when_the_daemon_dies(start_on_cuda, blend):
    daemon = start_on_cuda()
    with opened(daemon) as client:
        layer = layer_on(client, blend)
        x = torch.randn(TOKENS, requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, composed(layer, x, blend), rtol=1e-4, atol=1e-5)
        first = layer._outstanding[-1].sequence
        daemon.process.send_signal(signal.SIGSTOP)
        settled(daemon.stopped)
        found = []
        forward = threading.Thread(target=lambda: found.append(layer(x)))
        forward.start()
        settled(lambda: client.connection._lane._tail > first + 1)
        daemon.kill()
        forward.join(30)
        torch.testing.assert_close(found[0], layer.host(x), rtol=1e-6, atol=1e-7)
        # A backward of what ran before has lost its seeds.
        with pytest.raises(kasmina.ConnectionLost):
            y.sum().backward()
        torch.testing.assert_close(layer(x), layer.host(x), rtol=0, atol=0)
        # What lay in the daemon's memory lies there still.
        for ours, theirs in zip(layer.seeds[0].parameters(), twin("mlp").parameters()):
            torch.testing.assert_close(ours, theirs)


def test_training_goes_on_with_the_next_daemon(start_on_cuda):
    daemon = start_on_cuda()
    with opened(daemon) as client:
        layer = layer_on(client)
        with torch.no_grad():
            for parameter in layer.seeds[0].parameters():
                parameter.mul_(0.5)
        x = torch.randn(TOKENS, requires_grad=True)
        before = layer(x)
        daemon.kill()
        settled(lambda: not client.connected)
        daemon.process = daemon.start()
        settled(lambda: layer(x) is not None and layer.seeds[0].present)
        torch.testing.assert_close(layer(x), before)
        layer(x).sum().backward()


def test_a_daemon_that_left_in_order_says_nothing_to_the_next(start_on_cuda):
    daemon = start_on_cuda()
    with opened(daemon) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS, requires_grad=True)
        y = layer(x)
        daemon.process.terminate()
        # It is draining, which the call after this one is told.
        settled(lambda: torch.equal(layer(x), layer.host(x)))
        y.sum().backward()
        assert x.grad.isfinite().all() and daemon.process.wait(30) == 0
        settled(lambda: not client.connected)
        daemon.process = daemon.start()
        settled(lambda: not torch.equal(layer(x), layer.host(x)))
        assert layer.last_failures == {} and layer.seeds[0].present


def test_a_refusal_is_told_by_the_next_call_and_the_host_runs_until_then(start_on_cuda):
    daemon = start_on_cuda("[engine]\nmax_tickets_per_layer = 1\n")
    with opened(daemon) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS, requires_grad=True)
        first, second = layer(x), layer(x)
        torch.testing.assert_close(second, layer.host(x))
        second.sum().backward()
        torch.testing.assert_close(x.grad, torch.autograd.grad(layer.host(x).sum(), x)[0])
        assert all(not parameter.grad.any() for parameter in layer.seeds[0].parameters())
        with pytest.raises(kasmina.SessionError) as refused:
            layer(x)
        assert refused.value.code == "session.quota"
        # Its backward is not told of once more.
        first.sum().backward()
        layer(x).sum().backward()
        assert layer.last_failures == {}


def test_a_seed_that_fails_is_left_out_and_named_later(start_on_cuda):
    with opened(start_on_cuda()) as client:
        layer = layer_on(client, kernels=("mlp", "attention"))
        with torch.no_grad():
            next(layer.seeds[1].parameters()).fill_(torch.nan)
        x = torch.randn(TOKENS, requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, composed(layer, x, "convex"), rtol=1e-4, atol=1e-5)
        y.sum().backward()
        assert x.grad.isfinite().all()
        assert all(not parameter.grad.any() for parameter in layer.seeds[1].parameters())
        with pytest.warns(kasmina.SeedFailureWarning, match="seed 1"):
            assert layer.last_failures == {1: "kernel.non_finite"}


def test_pruned_memory_is_the_daemons_again_and_lasts_here(start_on_cuda):
    daemon = start_on_cuda()

    def used():
        return daemon.status()["device"]["gpus"][0]["used_bytes"]

    with opened(daemon) as client:
        layer = layer_on(client)
        x = torch.randn(TOKENS)
        layer(x)
        kept = list(layer.seeds[0].parameters())
        with_seed = used()
        layer.seeds[0].prune()
        settled(lambda: used() <= with_seed - (2 << 20))
        for ours, theirs in zip(kept, twin("mlp").parameters()):
            torch.testing.assert_close(ours, theirs)
    settled(lambda: daemon.status()["sessions"] == [])
    assert all(parameter.isfinite().all() for parameter in kept)


def test_weights_are_exported_from_the_gpu(start_on_cuda, tmp_path):
    with opened(start_on_cuda()) as client:
        layer = layer_on(client)
        with torch.no_grad():
            for parameter in layer.seeds[0].parameters():
                parameter.add_(1.0)
        layer.save_seed(0, tmp_path / "seed.pt2")
        loaded = torch.export.load(str(tmp_path / "seed.pt2")).module().state_dict()
        for name, tensor in layer.seeds[0].state_dict().items():
            torch.testing.assert_close(loaded[name], tensor)


def test_what_cannot_be_shared_says_why(start, start_on_cuda, monkeypatch):
    with pytest.raises(kasmina.SessionError, match="runs kernels on cpu, whose memory no other process") as refused:
        opened(start(settings='[device]\nkind = "cpu"\n'))
    assert refused.value.code == "session.device"
    with pytest.raises(kasmina.SessionError, match="tensors lie on the GPU 5a5a.*runs kernels on 0707"):
        opened(start_on_cuda(STAND_IN_UUID="7"))
    with pytest.raises(kasmina.SessionError, match="runs kernels on cuda:0, whose memory no other process"):
        opened(start_on_cuda(STAND_IN_UNSHARED="1"))
    daemon = start_on_cuda()
    for device in ("cpu", "cuda:x", 0):
        with pytest.raises(kasmina.UsageError, match='"cuda" or "cuda:1"'):
            kasmina.connect(str(daemon.socket), device=device)
    with pytest.raises(kasmina.SessionError, match="invalid device ordinal"):
        kasmina.connect(str(daemon.socket), device="cuda:7")
    with opened(daemon) as client:
        remote = client.open_layer("layer", 1, input_shape=[8])
        with pytest.raises(kasmina.UsageError, match="NumPy arrays"):
            remote.forward(np.zeros((2, 8), np.float32))
    monkeypatch.setattr(kasmina._cuda, "LIBRARY", "libno-such-driver.so.1")
    monkeypatch.setattr(Gpu, "_opened", {})
    with pytest.raises(kasmina.SessionError, match="no CUDA driver is here"):
        opened(daemon)


def test_the_daemon_outlives_a_trainer_that_dies_on_its_stream(start_on_cuda):
    daemon = start_on_cuda()
    client = opened(daemon)
    layer = layer_on(client)
    layer(torch.randn(TOKENS))
    # A submission whose word comes when its session is gone.
    with held(client.connection.gpu, 0), torch.no_grad():
        layer.submit(torch.randn(TOKENS))
        client.connection.end("the trainer leaves it")
        settled(lambda: daemon.status()["sessions"] == [])
    with opened(daemon) as other:
        layer = layer_on(other)
        x = torch.randn(TOKENS)
        torch.testing.assert_close(layer(x), composed(layer, x, "convex"), rtol=1e-4, atol=1e-5)
