"""What fails alone: kernels, seeds, trainers, daemons."""

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import ended, settled
from .modules import IMAGE, TOKENS, twin

PYTHON = Path(__file__).resolve().parents[2]


def make(client, seeds=2):
    return kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=seeds)


@pytest.mark.parametrize(
    ("kernel", "code"),
    [
        ("no-such-kernel", "kernel.not_found"),
        ("garbage", "kernel.deserialize"),
        ("mlp-nan", "kernel.rejected"),
        ("conv-norm", "kernel.shape"),
    ],
)
def test_a_graft_that_cannot_be_says_why(client, kernel, code):
    layer = make(client)
    with pytest.raises(kasmina.KasminaError) as caught:
        layer.seeds[1].graft(kernel, alpha=0.5, input_shape=TOKENS[1:])
    error = caught.value
    assert isinstance(error, kasmina.KernelError), type(error)
    assert error.code == code, error
    assert error.seed == 1 and error.kernel == kernel and error.layer is not None
    assert layer.seeds[1].state == "dormant"
    # The seed is as good as before.
    layer.seeds[1].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
    layer(torch.randn(TOKENS)).sum().backward()


@pytest.fixture
def patient(start):
    """A client of a daemon that leaves a kernel which failed alone for a while."""
    with start(settings='[engine]\nrecovery_backoff = "60s"\n').connect() as client:
        yield client


def test_a_seed_that_gives_no_numbers_falls_back_and_is_unloaded(patient):
    layer = make(patient)
    layer.seeds[0].graft("mlp", alpha=0.25, input_shape=TOKENS[1:])
    layer.seeds[1].graft("attention", alpha=0.5, input_shape=TOKENS[1:])
    with torch.no_grad():
        dict(layer.seeds[1].named_parameters())["out.weight"].fill_(float("nan"))
    module = twin("mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            x = torch.randn(TOKENS, requires_grad=True)
            y = layer(x)
            truth = 0.75 * layer.host(x) + 0.25 * module(x)
            assert torch.allclose(y, truth, rtol=1e-4, atol=1e-5)
            y.sum().backward()
            assert x.grad.isfinite().all()
    stats = layer.seeds[1].stats()
    assert stats["failures"]["non_finite"] == 3 and stats["successes"] == 0
    settled(lambda: layer.seeds[1].state == "error_recovery")
    assert layer.seeds[1].last_error()["code"] == "kernel.non_finite"
    assert layer.seeds[0].stats()["failures"] == {k: 0 for k in stats["failures"]}
    # What was unloaded may be grafted anew.
    layer.seeds[1].graft("attention", alpha=0.5, input_shape=TOKENS[1:])
    assert layer(torch.randn(TOKENS)).isfinite().all()


def test_a_panic_in_one_seed_is_that_seeds_error(start):
    daemon = start(environment={"KASMINA_FAILPOINT": "engine.execute.panic=attention"})
    with daemon.connect() as client:
        layer = make(client)
        layer.seeds[0].graft("mlp", alpha=0.25, input_shape=TOKENS[1:])
        layer.seeds[1].graft("attention", alpha=0.5, input_shape=TOKENS[1:])
        module = twin("mlp")
        x = torch.randn(TOKENS, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = layer(x)
        assert torch.allclose(y, 0.75 * layer.host(x) + 0.25 * module(x), rtol=1e-4, atol=1e-5)
        y.sum().backward()
        assert layer.seeds[1].stats()["failures"]["runtime"] == 1
        assert layer.seeds[0].stats()["successes"] == 1
    assert daemon.process.poll() is None


TRAINER = """
import sys, torch
sys.path.insert(0, {python!r})
import kasmina.torch
client = kasmina.connect({socket!r})
layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="layer", seeds=2)
layer.seeds[0].graft("mlp", alpha=0.25, input_shape=(3, 8))
layer.seeds[1].graft("attention", alpha=0.25, input_shape=(3, 8))
kept = [layer(torch.randn(4, 3, 8)) for _ in range(5)]
print("ready", flush=True)
while True:
    layer(torch.randn(4, 3, 8)).sum().backward()
"""


def test_a_killed_trainer_leaves_nothing_behind(daemon):
    # Once through, so that what is made lazily is there.
    with daemon.connect() as client:
        make(client).seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
    settled(lambda: not daemon.status()["sessions"])
    before = daemon.descriptors()
    for _ in range(3):
        script = TRAINER.format(python=str(PYTHON), socket=str(daemon.socket))
        with ended(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)) as trainer:
            assert trainer.stdout.readline() == "ready\n"
            session = daemon.status()["sessions"][0]
            assert session["tickets"] >= 5 and session["live_seeds"] == 2
            trainer.send_signal(signal.SIGKILL)
        settled(lambda: not daemon.status()["sessions"])
    settled(lambda: daemon.descriptors() <= before)
    with daemon.operator() as operator:
        assert operator.seeds()["seeds"] == []
        assert all(kernel["holders"] == 0 for kernel in operator.cache()["kernels"])


def test_a_killed_daemon_is_an_error_and_the_host_goes_on(daemon):
    client = daemon.connect()
    layer = make(client)
    layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
    x = torch.randn(TOKENS, requires_grad=True)
    y = layer(x)
    daemon.kill()
    with pytest.raises(kasmina.ConnectionLost) as caught:
        y.sum().backward()
    assert caught.value.code == "session.lost"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.randn(TOKENS, requires_grad=True)
        y = layer(x)
    assert torch.equal(y, layer.host(x)) and not layer.connected
    y.sum().backward()
    assert x.grad.isfinite().all()


def test_an_image_kernel_in_a_layer_of_images(client):
    layer = kasmina.torch.SeededLayer(nn.Conv2d(6, 6, 3, padding=1), client, name="image", seeds=1)
    layer.seeds[0].graft("conv-norm", alpha=0.5, input_shape=IMAGE[1:])
    layer(torch.randn(IMAGE)).sum().backward()
