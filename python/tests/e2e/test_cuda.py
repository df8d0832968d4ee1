"""A daemon whose kernels run on CUDA: the driver is the stand-in of tests/cuda, and what calls it is what is shipped.

What layers compute on it is tested by test_equality and test_roles, which scripts/test runs on it too.
"""

import concurrent.futures
import time

import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import settled
from .modules import TOKENS
from .test_reattach import Twins, linear

pytestmark = pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")


def test_a_daemon_says_which_gpu_it_has_and_what_is_used_of_it(start_on_cuda, driver):
    daemon = start_on_cuda()
    device = daemon.status()["device"]
    assert device["names"] == ["cuda:0"] and device["kind"] == "cuda" and device["no_gpu"] is None
    (gpu,) = device["gpus"]
    assert (gpu["model"], gpu["capability"], gpu["cuda"]) == ("a stand-in on the host", "8.0", "12.8")
    found = {library["name"]: library["path"] for library in device["libraries"]}
    assert found["libcuda"] == f"{driver}/libcuda.so.1" and found["NVRTC"] == f"{driver}/libnvrtc.so.12"
    assert gpu["used_bytes"] == 0
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        layer(torch.randn(TOKENS, requires_grad=True)).sum().backward()
        assert daemon.status()["device"]["gpus"][0]["used_bytes"] > 0
    settled(lambda: daemon.status()["sessions"] == [])
    assert daemon.terminate() == 0, daemon.text()


def test_training_goes_on_through_the_loss_of_the_device(start_on_cuda, tmp_path):
    fault = tmp_path / "fault"
    daemon = start_on_cuda(STAND_IN_FAULT=str(fault))
    with daemon.connect() as client:
        twins = Twins(client, [{"attention": 0.4, "mlp": 0.3}], TOKENS, linear)
        for _ in range(2):
            for _ in range(3):
                assert twins.step() == "seeded"
            fault.touch()
            # A forward gives the host's output, and nothing but a backward on its way is lost.
            assert twins.step() in ("alone", "lost") and not fault.exists()
            twins.all_seeded(patience=60)
        for _ in range(3):
            assert twins.step() == "seeded"
        twins.agree()
        assert twins.taken["lost"] <= 2
        status = daemon.status()
        # Another daemon in the same process: whoever supervises it has seen nothing.
        assert status["pid"] == daemon.process.pid and daemon.process.poll() is None
        assert status["sessions"][0]["live_seeds"] == 2
    text = daemon.text()
    assert text.count("the GPU has failed") == 2 and "illegal memory access" in text


def test_training_goes_on_through_a_device_that_stalls(start_on_cuda, tmp_path):
    stall = tmp_path / "stall"
    daemon = start_on_cuda('stall_limit = "1s"\n', STAND_IN_STALL=str(stall))
    with daemon.connect() as client:
        twins = Twins(client, [{"attention": 0.4, "mlp": 0.3}], TOKENS, linear)
        for _ in range(3):
            assert twins.step() == "seeded"
        stall.touch()
        assert twins.step() in ("alone", "lost") and not stall.exists()
        twins.all_seeded(patience=60)
        for _ in range(3):
            assert twins.step() == "seeded"
        twins.agree()
        assert daemon.status()["pid"] == daemon.process.pid and daemon.process.poll() is None
    text = daemon.text()
    assert text.count("the GPU has stalled") == 1 and "it has done nothing for 1s (device.stall_limit)" in text


def test_a_daemon_that_is_asked_to_leave_does_not_wait_for_a_device_that_stalls(start_on_cuda, tmp_path):
    stall = tmp_path / "stall"
    daemon = start_on_cuda('stall_limit = "3s"\n', STAND_IN_STALL=str(stall))
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        x = torch.randn(TOKENS, requires_grad=True)
        # A ticket that the daemon would wait for, as its backward does not come.
        held = layer(x)
        stall.touch()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stalled = pool.submit(layer, x)
            settled(lambda: not stall.exists())
            daemon.process.terminate()
            assert daemon.process.wait(60) == 0
            torch.testing.assert_close(stalled.result(), layer.host(x), rtol=0, atol=0)
        del held
    # Whichever it hears of first: that the device is lost, or that the session has ended for it. It is not the time limit.
    text = daemon.text()
    assert text.count("the GPU has stalled") == 1 and "left with tickets unspent" not in text


def test_a_device_that_is_lost_too_often_ends_the_daemon(start_on_cuda, tmp_path):
    fault = tmp_path / "fault"
    losses = ",".join(str(int(time.time())) for _ in range(5))
    daemon = start_on_cuda(STAND_IN_FAULT=str(fault), KASMINA_DEVICE_LOSSES=losses)
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        x = torch.randn(TOKENS)
        layer(x)
        fault.touch()
        torch.testing.assert_close(layer(x), layer.host(x), rtol=0, atol=0)
        assert daemon.process.wait(30) == 1
    assert "the GPU was lost too often" in daemon.text()
