import gc
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import kasmina  # noqa: E402
from peer import Peer  # noqa: E402


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("boom")


class Named(nn.Module):
    """Parameters with the names of a seed's own attributes."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(3))
        self.state = nn.Parameter(torch.zeros(3))
        self.register_buffer("kernel", torch.ones(3))

    def forward(self, x):
        return x * self.alpha + self.state * self.kernel


def kernels():
    torch.manual_seed(7)
    return {
        "linear": nn.Linear(3, 3),
        "mlp": nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)),
        "norm": nn.BatchNorm1d(3),
        "frozen": nn.Linear(3, 3).requires_grad_(False),
        "wide": nn.Linear(3, 6),
        "named": Named(),
        "fails": Fails(),
    }


@pytest.fixture
def peer(tmp_path):
    peer = Peer(str(tmp_path / "peer.sock"), kernels())
    yield peer
    peer.close()


@pytest.fixture
def client(peer):
    with kasmina.connect(peer.path) as client:
        yield client
    gc.collect()
