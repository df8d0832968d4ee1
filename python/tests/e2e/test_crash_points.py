"""kill -9 of the daemon at every point of a session and of a pass (src/failpoint.rs), by itself and in the middle of it.

Each test goes through a trainer's whole life. Wherever the daemon dies, the step goes on with the host or is lost as
documented, nothing hangs, the daemon is started again on the same socket, and the trainer comes back by itself: kernels,
blend factors, schedules, parameters and buffers are as the trainer holds them, and further steps are those of plain
PyTorch continued from there.
"""

import subprocess

import pytest
import torch
from torch import nn

import kasmina
from kasmina.torch import SeededLayer
from .conftest import daemons
from .crash import BUILD, FAILPOINTS, SOON, Dying, Hosted, Images, points
from .modules import TOKENS

pytestmark = [
    pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning", "ignore::kasmina.SeedFailureWarning"),
    pytest.mark.skipif(not FAILPOINTS.exists(), reason=f"no daemon with failpoints: {BUILD}"),
]

#: Points that only a host in the daemon comes to.
HOSTED = {"offer.copied", "offer.kept", "backward.run_again"}
#: Points that are reached again in other circumstances: how often they are passed by before.
AGAIN = {
    "frame.received": (2, 3, 4, 5),
    "reply.half_sent": (2, 3, 5),
    "reply.ready": (2, 3),
    "reply.descriptors_ready": (2,),
    "reply.descriptors_sent": (2, 3),
    "graft.memory_made": (2,),
    "graft.attached": (2,),
    "completion.published": (2,),
}
TIMES = [(point, time) for point in points() for time in (1, *AGAIN.get(point, ()))]
NAMES = [point if time == 1 else f"{point}:{time}" for point, time in TIMES]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of PyTorch that wait for each other spin, on the processors that the daemon needs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def die(kernels):
    """Starts daemons that die; what still runs at the end is killed."""
    with daemons(kernels, settings=SOON) as begin:
        yield lambda **environment: begin(kind=Dying, environment=environment)


def life(point):
    return Hosted if point in HOSTED else Images


@pytest.mark.parametrize(("point", "time"), TIMES, ids=NAMES)
def test_a_daemon_that_dies_at_a_point_is_come_back_from(die, point, time):
    life(point)(die(KASMINA_KILL_AT=f"{point}:{time}"), point).live()


@pytest.mark.parametrize(("point", "time"), TIMES, ids=NAMES)
def test_a_daemon_that_dies_as_its_trainer_returns_is_come_back_from(die, point, time):
    trainer = life(point)(die(), point)
    trainer.later = {"KASMINA_KILL_AT": f"{point}:{time}"}
    trainer.live()


@pytest.mark.parametrize("training", [True, False])
def test_a_forward_that_its_host_may_have_counted_already_is_lost(die, training):
    daemon = die(KASMINA_KILL_AT="forward.committed")
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(3))
    with daemon.connect() as client:
        layer = SeededLayer(module, client, input_shape=TOKENS[1:], host="daemon").train(training)
        layer.seeds[0].graft("mlp", alpha=0.3)
        x = torch.randn(TOKENS)
        if training:
            with pytest.raises(kasmina.ConnectionLost) as caught:
                layer(x)
            assert caught.value.in_flight and module[1].num_batches_tracked == 1
        layer.eval()
        # In eval mode nothing is counted, and this side may run it.
        assert torch.equal(layer(x), module(x)) and not layer.connected


def test_a_name_that_is_no_point_ends_the_start():
    for variable in ("KASMINA_KILL_AT", "KASMINA_STOP_AT"):
        for text in ("turn.begin", "turn.begun:0"):
            refused = subprocess.run([str(FAILPOINTS)], env={variable: text}, capture_output=True, text=True, timeout=30)
            assert refused.returncode == 78 and variable in refused.stderr and text in refused.stderr
