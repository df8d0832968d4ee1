"""The daemon's own life: start, refusals, drain."""

import subprocess

import kasmina
import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import BINARY, settled
from .modules import TOKENS


def test_sigterm_drains_and_leaves_in_order(daemon):
    with daemon.connect() as client:
        client  # a session that is open
        assert daemon.terminate() == 0
    assert not daemon.socket.exists() and not daemon.control.exists()
    assert "panicked" not in daemon.text()


def test_a_draining_daemon_lets_layers_go_on_and_tickets_finish(daemon):
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        before = torch.randn(TOKENS, requires_grad=True)
        y = layer(before)
        daemon.process.terminate()
        x = torch.randn(TOKENS, requires_grad=True)

        def alone():
            with torch.no_grad():
                return torch.equal(layer(x), layer.host(x))

        # Until the signal has arrived passes are served; from then on the layer is its host, without an error.
        with pytest.warns(RuntimeWarning, match="shutting down"):
            settled(alone)
        alone = layer(x)
        alone.sum().backward()
        assert torch.equal(layer(x), layer.host(x))
        # The ticket that was open is spent, and then the daemon has nothing left to wait for.
        y.sum().backward()
        assert before.grad.isfinite().all()
        assert daemon.process.wait(30) == 0


def test_a_second_daemon_is_refused_and_a_stale_socket_taken_over(daemon):
    second = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=30)
    assert second.returncode != 0 and "another daemon" in second.stderr
    daemon.connect().close()
    daemon.kill()
    assert daemon.socket.exists()
    daemon.process = daemon.start()
    daemon.connect().close()


def test_what_was_fetched_outlives_the_daemon(daemon, kernels, tmp_path):
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
    assert daemon.terminate() == 0
    daemon.process = daemon.start()
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        layer(torch.randn(TOKENS)).sum().backward()
    with daemon.operator() as operator:
        tiers = {tier["name"]: tier for tier in operator.cache()["tiers"]}
    assert tiers["sqlite"]["hits"] == 1 and tiers["directory"]["hits"] == 0


def test_a_wrong_configuration_is_named_by_key_and_line(tmp_path):
    config = tmp_path / "kasmina.toml"
    config.write_text('[daemon]\nsocket = "/tmp/x.sock"\nsokket_mode = "0600"\n\n[engine]\nerror_threshold = "three"\n')
    checked = subprocess.run(
        [str(BINARY), "--config", str(config), "--check-config"], capture_output=True, text=True, timeout=30
    )
    assert checked.returncode == 78
    assert f"{config}:3: daemon.sokket_mode" in checked.stderr
    assert f"{config}:6: engine.error_threshold" in checked.stderr


def test_rubbish_on_the_socket_ends_that_connection_only(daemon):
    import socket

    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x04\x00\x00\x00\x01\x00\x00\x00nope"):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(daemon.socket))
            peer.sendall(rubbish)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass
    settled(lambda: not daemon.status()["sessions"])
    with daemon.connect() as client, pytest.raises(kasmina.KasminaError) as caught:
        kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=65)
    assert caught.value.code == "session.quota"
    assert daemon.process.poll() is None
