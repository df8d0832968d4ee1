"""Two trainers with DistributedDataParallel, or FSDP beside the seeds, end where one with the joint batch ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import ddp
from .test_equality import close

TESTS = Path(__file__).resolve().parents[1]

#: The two halves' gradients are each summed over four samples and then added; the one process sums over eight. So
#: the last bits differ, in six steps by some 1e-7 of a weight's size.
TOLERANCE = 1e-5


def ranks(sockets, folder, kind):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "e2e.ddp", str(path), str(rank), str(len(sockets)), str(folder), kind],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, path in enumerate(sockets)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.mark.parametrize("kind, daemons", [
    ("ddp", 1), ("ddp", 2), ("fsdp1", 1), ("fsdp2", 1), ("ddp-whole", 1), ("ddp-whole", 2), ("fsdp2-whole", 1),
])
def test_two_processes_train_as_one_with_the_joint_batch(start, tmp_path, kind, daemons):
    started = [start() for _ in range(daemons)]
    sockets = [started[rank % daemons].socket for rank in range(2)]
    codes, outputs = ranks(sockets, tmp_path, kind)
    assert codes == [0, 0], "\n".join(outputs)
    with started[0].connect() as client:
        alone = ddp.Model(client, kind.endswith("whole"))
        before = {name: value.detach().clone() for name, value in alone.named_parameters()}
        ddp.train(alone, 0, 1)
        truth = {name: value.detach() for name, value in alone.named_parameters()}
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert set(first) == set(second) == set(truth)
    for name, value in truth.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the ranks"
        close(first[name], value, name, TOLERANCE)
        assert not torch.allclose(value, before[name], atol=1e-3), f"{name} was not trained"


def test_the_example_for_torchrun_runs(start):
    root = TESTS.parents[1]
    daemon = start(kernels=root / "examples/kernels")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1",
         str(root / "examples/ddp_torchrun.py"), "--socket", str(daemon.socket), "--epochs", "2"],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("kernels ['conv3x3-bn-relu', 'squeeze-excite']")
