"""A daemon with several GPUs: which of them a session is on. The driver is the stand-in of tests/cuda, with more devices."""

import subprocess

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from kasmina._cuda import Gpu
from . import on_gpu
from .conftest import settled
from .modules import TOKENS, twin
from .test_device import NAMED, TOOL, refused

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or bool(on_gpu.DEVICE), reason="it is about the stand-in alone"
)


NO_DEVICE = "there is no device 5: the driver shows 2, and counts them from 0"


@pytest.fixture
def trainer(driver, monkeypatch):
    """A process that sees two GPUs, as the daemons of these tests do."""
    on_gpu.use_stand_in(driver, monkeypatch.setattr)
    monkeypatch.setenv("STAND_IN_DEVICES", "2")
    monkeypatch.setattr(Gpu, "_opened", {})


def on(daemon, device=None):
    return kasmina.connect(str(daemon.socket), device=device, arena_bytes=8 << 20)


def layer_of(client):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=2)
    for seed, kernel in zip(layer.seeds, ("mlp", "attention")):
        seed.graft(kernel, alpha=0.25, input_shape=TOKENS[1:])
    return layer


def check(layer):
    """One step of a layer of :func:`layer_of`, beside the same in PyTorch."""
    x = torch.randn(TOKENS, requires_grad=True)
    y = layer(x)
    kernels = [twin("mlp"), twin("attention")]
    expected = 0.5 * layer.host(x) + 0.25 * kernels[0](x) + 0.25 * kernels[1](x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(expected.sum(), x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, grad, rtol=1e-4, atol=1e-5)


def sessions(daemon):
    return [gpu["sessions"] for gpu in daemon.status()["device"]["gpus"]]


def test_sessions_are_spread_over_all_gpus(start_on_cuda):
    daemon = start_on_cuda(STAND_IN_DEVICES="2")
    device = daemon.status()["device"]
    assert device["names"] == ["cuda:0", "cuda:1"] and device["no_gpu"] is None
    assert [gpu["name"] for gpu in device["gpus"]] == device["names"]
    assert device["gpus"][0]["uuid"] == "5a" * 16 and device["gpus"][1]["uuid"] == "5b" * 16
    with on(daemon) as first, on(daemon) as second:
        assert (first.device, second.device) == ("cuda:0", "cuda:1")
        # The same kernels: each GPU has plans of its own.
        layers = [layer_of(first), layer_of(second)]
        for _ in range(3):
            for layer in layers:
                check(layer)
        status = daemon.status()
        assert [session["device"] for session in status["sessions"]] == ["cuda:0", "cuda:1"]
        assert all(gpu["used_bytes"] > 0 for gpu in status["device"]["gpus"]) and sessions(daemon) == [1, 1]
        said = subprocess.run([str(TOOL), "status", "--control-socket", str(daemon.control)], capture_output=True, text=True)
        assert "device cuda:0, cuda:1 (device.kind is cuda)" in said.stdout and "cuda:1: a stand-in on the host, 5b5b" in said.stdout
        first.close()
        settled(lambda: sessions(daemon) == [0, 1])
        with on(daemon) as third:
            assert third.device == "cuda:0"
            check(layer_of(third))
    settled(lambda: sessions(daemon) == [0, 0])


@pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
def test_tensors_on_a_gpu_are_served_there(start_on_cuda, trainer):
    daemon = start_on_cuda(STAND_IN_DEVICES="2")
    with on(daemon, "cuda:1") as first, on(daemon, "cuda:1") as second, on(daemon, "cuda:0") as third:
        clients = first, second, third
        assert [client.device for client in clients] == ["cuda:1", "cuda:1", "cuda:0"] and sessions(daemon) == [1, 2]
        layers = [layer_of(client) for client in clients]
        for _ in range(3):
            for layer in layers:
                check(layer)
    settled(lambda: sessions(daemon) == [0, 0])


def test_gpus_that_were_not_named_are_left_alone(start_on_cuda, trainer):
    daemon = start_on_cuda("ordinals = [1]\n", STAND_IN_DEVICES="2")
    assert daemon.status()["device"]["names"] == ["cuda:1"]
    with on(daemon) as client:
        assert client.device == "cuda:1"
        check(layer_of(client))
    with pytest.raises(kasmina.SessionError, match=r"lie on the GPU 5a5a.* on 5b5b\w* \(cuda:1\): .*device.ordinals") as error:
        on(daemon, "cuda:0")
    assert error.value.code == "session.device"


def test_one_that_is_not_there_is_told_of_or_ends_the_start(start, driver, tmp_path):
    device = f'libraries = ["{driver}"]\nimage_folder = "{driver}/images"\nordinals = [0, 5]\n'
    environment = {"LD_LIBRARY_PATH": str(driver), "STAND_IN_DEVICES": "2"}
    daemon = start(settings=f'[device]\nkind = "auto"\n{device}', environment=environment)
    told = daemon.status()["device"]
    assert told["names"] == ["cuda:0"] and told["no_gpu"] == f"cuda:5: {NO_DEVICE}"
    assert "a GPU is not used" in daemon.text()
    done = refused(tmp_path, f'kind = "cuda"\n{device}', environment)
    assert done.returncode == 78 and NAMED + NO_DEVICE in done.stderr, done


def test_no_room_in_the_ledger_is_no_room_on_the_gpu(start_on_cuda, trainer):
    daemon = start_on_cuda("[limits]\nmax_bytes_per_session = \"10MiB\"\n")
    with on(daemon) as client:
        # The arena's copy on the GPU, and a seed's file with its copy there.
        held = [user["bytes"] for user in daemon.status()["users"]]
        assert 8 << 20 <= held[0] < 9 << 20
        layer_of(client)
        seeds = [user["bytes"] for user in daemon.status()["users"]][0] - held[0]
        files = sum(4 * parameter.numel() for name in ("mlp", "attention") for parameter in twin(name).parameters())
        assert seeds >= 2 * files
    with pytest.raises(kasmina.SessionError, match="limits.max_bytes_per_session") as error:
        kasmina.connect(str(daemon.socket), arena_bytes=16 << 20)
    assert error.value.code == "session.quota"
    settled(lambda: daemon.status()["users"] == [])
