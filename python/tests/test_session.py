"""A session without PyTorch's layers: control, passes on arrays, ends of all kinds."""

import gc
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import kasmina
from kasmina._offers import Offers


def exported(module, width=3):
    batch = torch.export.Dim("batch", min=1)
    archive = io.BytesIO()
    torch.export.save(torch.export.export(module, (torch.zeros(2, width),), dynamic_shapes=({0: batch},)), archive)
    return archive.getvalue()


def test_a_pass_on_arrays_there_and_back(peer, client):
    layer = client.open_layer("fc", seeds=2)
    layer.graft(1, "linear", 0.5, [3])
    weight, bias = (layer.grafted[1].array(entry) for entry in layer.grafted[1].parameters)
    weight *= 2.0
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    done = layer.forward(x, train=True, gradients=True)
    assert done.live == [1] and done.failures == {} and done.blend_weight == done.alpha_total == 0.5
    np.testing.assert_allclose(done.output, 0.5 * (x @ weight.T + bias), rtol=1e-5)
    g = np.ones((2, 3), np.float32)
    gradients = done.backward(g)
    np.testing.assert_allclose(gradients.input, 0.5 * g @ weight, rtol=1e-5)
    np.testing.assert_allclose(gradients.parameters[1]["weight"], 0.5 * g.T @ x, rtol=1e-5)
    np.testing.assert_allclose(gradients.parameters[1]["bias"], [1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(gradients.alphas, [0, (x @ weight.T + bias).sum()], rtol=1e-4)
    with pytest.raises(kasmina.TicketError) as caught:
        done.backward(g)
    assert caught.value.code == "ticket.spent"


def test_a_refusal_is_the_familys_exception(client):
    layer = client.open_layer("fc")
    with pytest.raises(kasmina.KernelError) as caught:
        layer.graft(0, "unknown", 0.5, [3])
    assert (caught.value.code, caught.value.seed, caught.value.kernel) == ("kernel.not_found", 0, "unknown")
    for alpha in (-0.1, 1.1, float("nan"), float("inf")):
        with pytest.raises(kasmina.UsageError):
            layer.set_alpha(0, alpha)
    with pytest.raises(kasmina.UsageError):
        layer.set_alpha(1, 0.5)


def test_a_refused_pass_raises_and_the_session_goes_on(peer, client):
    layer = client.open_layer("fc")
    x = np.ones((2, 3), np.float32)
    peer.refuse_next = (2, "too many tickets")
    with pytest.raises(kasmina.SessionError) as caught:
        layer.forward(x)
    assert caught.value.code == "session.quota" and "too many tickets" in str(caught.value)
    assert layer.forward(x).live == []


def test_nobody_at_the_socket(tmp_path):
    with pytest.raises(kasmina.SessionError) as caught:
        kasmina.connect(str(tmp_path / "none.sock"))
    assert caught.value.code == "session.unavailable"


def test_dropped_passes_give_their_tickets_and_memory_back(peer, client):
    layer = client.open_layer("fc")
    layer.graft(0, "linear", 0.5, [3])
    x = np.ones((64, 3), np.float32)
    held = [layer.forward(x, gradients=True) for _ in range(100)]
    assert len(peer.tickets) == 100
    del held
    gc.collect()
    layer.forward(x)
    assert peer.tickets == {}
    assert client.connection._heap.free_bytes == client.connection._heap.size


def test_threads_share_a_session(client):
    layer = client.open_layer("fc")
    layer.graft(0, "linear", 1.0, [3])
    weight, bias = (layer.grafted[0].array(entry) for entry in layer.grafted[0].parameters)
    wrong = []

    def work(number):
        for i in range(50):
            x = np.full((2, 3), number * 100 + i, np.float32)
            done = layer.forward(x, gradients=True)
            if not np.allclose(done.output, x @ weight.T + bias, rtol=1e-4, atol=1e-4):
                wrong.append((number, i))
            done.backward(x)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_spinning_finds_the_same(tmp_path):
    from conftest import kernels
    from peer import Peer

    peer = Peer(str(tmp_path / "spin.sock"), kernels(), spin_us=50)
    with kasmina.connect(peer.path) as client:
        layer = client.open_layer("fc")
        for i in range(200):
            assert layer.forward(np.full((1, 3), i, np.float32)).live == []
    peer.close()


def test_it_spins_as_long_as_that_pays(tmp_path):
    from conftest import kernels
    from peer import Peer

    peer = Peer(str(tmp_path / "spin.sock"), kernels(), spin_us=50)
    with kasmina.connect(peer.path) as client:
        lane = client.connection._lane
        if not lane._spin_s:
            pytest.skip("this processor has no order of stores that Python could rely on")
        for left in (25e-6, 12.5e-6):
            lane._learn_spin(1.0)
            assert lane._next_spin_s == pytest.approx(left)
        for _ in range(10):
            lane._learn_spin(1.0)
        assert lane._next_spin_s == 0.0
        lane._learn_spin(149e-6)
        assert lane._next_spin_s == lane._spin_s
    peer.close()


@pytest.fixture
def once(peer):
    """A client that does not come back: the peer would take it in again at once."""
    with kasmina.connect(peer.path, reconnect=False) as client:
        yield client
    gc.collect()


def test_a_daemon_that_dies_in_a_pass_is_a_lost_connection(peer, once):
    layer = once.open_layer("fc")
    peer.kernels["die"] = True
    with pytest.raises(kasmina.ConnectionLost) as caught:
        layer.forward(np.ones((1, 3), np.float32))
    assert caught.value.in_flight and caught.value.code == "session.lost"
    assert not once.connected
    with pytest.raises(kasmina.ConnectionLost) as caught:
        layer.forward(np.ones((1, 3), np.float32))
    assert not caught.value.in_flight


def test_a_submission_that_the_daemon_has_not_seen_was_not_in_flight(peer, once):
    layer = once.open_layer("fc")
    peer.kernels["deaf"] = True
    with pytest.raises(kasmina.ConnectionLost) as caught:
        layer.forward(np.ones((1, 3), np.float32))
    assert not caught.value.in_flight and not once.connected


def test_a_daemon_that_had_gone_before_is_found_out_by_ringing(peer):
    with kasmina.connect(peer.path, reconnect=False) as client:
        layer = client.open_layer("fc")
        peer.doorbell.shutdown(socket.SHUT_RDWR)
        peer.lane.join(20)
        assert client.connected, "nobody has told it"
        with pytest.raises(kasmina.ConnectionLost) as caught:
            layer.forward(np.ones((1, 3), np.float32))
        assert not caught.value.in_flight and not client.connected


def test_what_this_side_has_given_up_may_still_be_done(peer, client):
    lane = client.connection._lane
    layer = client.open_layer("fc")
    peer.hold = threading.Event()
    sequence = lane.begin(None, 1, 0, layer.number, 1, blocks=(36864, 4, 36928, 4) + (0,) * 8,
                          dims=(1, 1, 1, *[0] * 7, 1, *[0] * 7))
    client.close()
    with pytest.raises(kasmina.ConnectionLost) as caught:
        lane.finish(sequence, layer.number)
    # The daemon's end was open when this one was closed, and the submission lies there.
    assert caught.value.in_flight
    peer.hold.set()


def test_an_artifact_is_offered_and_offered_again_where_it_has_gone(peer, client):
    artifact = exported(torch.nn.Linear(3, 3))
    kernel = client.offer(artifact)
    digest = kernel.removeprefix("offered-")
    assert digest == hashlib.sha256(artifact).hexdigest() and peer.offers == [digest]
    assert client.connection._heap.free_bytes == client.connection._heap.size
    layer = client.open_layer("fc", seeds=2)
    layer.graft(0, kernel, 0.5, [3])
    assert peer.offers == [digest], "it was there"
    del peer.kernels[kernel]
    layer.graft(1, kernel, 0.5, [3])
    assert peer.offers == [digest] * 2
    client.withdraw(kernel)
    del peer.kernels[kernel]
    with pytest.raises(kasmina.KernelError) as caught:
        layer.graft(1, kernel, 0.5, [3])
    assert caught.value.code == "kernel.not_offered"
    with pytest.raises(kasmina.KernelError) as caught:
        client.offer(b"no archive")
    assert caught.value.code == "kernel.deserialize"
    with pytest.raises(kasmina.ArenaFull):
        client.offer(bytes(5 << 20))


def test_artifacts_are_kept_as_often_as_they_are_wanted():
    offers = Offers()
    offers.keep("a", b"1"), offers.keep("a", b"1")
    offers.drop("a"), offers.drop("b")
    assert offers.get("a") == b"1"
    offers.drop("a")
    assert offers.get("a") is None


def test_a_forked_process_is_refused_and_lets_go(client):
    layer = client.open_layer("fc")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            layer.forward(np.ones((1, 3), np.float32))
        except kasmina.UsageError:
            try:
                client.request("prefetch", kernels=[])
            except kasmina.UsageError:
                code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert layer.forward(np.ones((1, 3), np.float32)).live == []


def test_a_closed_session_says_so(peer):
    client = kasmina.connect(peer.path)
    layer = client.open_layer("fc")
    client.close()
    assert not client.connected
    with pytest.raises(kasmina.ConnectionLost):
        client.prefetch(["a"])
    with pytest.raises(kasmina.ConnectionLost):
        layer.forward(np.ones((1, 3), np.float32))


def test_a_layer_that_dies_is_closed(peer, client):
    number = client.open_layer("fc").number
    gc.collect()
    client.prefetch([])
    assert peer.closed_layers == [number]


@pytest.mark.parametrize("how", [signal.SIGKILL])
def test_a_killed_daemon_is_noticed(tmp_path, how):
    script = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\n"
        "from peer import Peer\n"
        "import os\n"
        "peer = Peer(sys.argv[1], {})\n"
        "peer._hello_checked = True\n"
        "os.getpid = lambda: int(open(sys.argv[1] + '.pid').read())\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    here = Path(__file__).resolve().parent
    path = str(tmp_path / "killed.sock")
    Path(path + ".pid").write_text(str(os.getpid()))
    daemon = subprocess.Popen(
        [sys.executable, "-c", script, path, str(here), str(here.parent)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    try:
        assert daemon.stdout.readline() == "ready\n"
        client = kasmina.connect(path)
        layer = client.open_layer("fc")
        assert layer.forward(np.ones((1, 3), np.float32)).live == []
        daemon.send_signal(how)
        daemon.wait()
        with pytest.raises(kasmina.ConnectionLost):
            layer.forward(np.ones((1, 3), np.float32))
        with pytest.raises(kasmina.ConnectionLost):
            client.prefetch([])
    finally:
        daemon.kill()
        daemon.communicate()
