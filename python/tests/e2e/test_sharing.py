"""What `benches/sharing.py` measures, done once on the stand-in: its figures say nothing here, its numbers have to be right."""

import sys

import pytest
import torch
from torch import nn

import kasmina
from . import on_gpu
from .conftest import ROOT

sys.path.append(str(ROOT / "benches"))
import device  # noqa: E402
import sharing  # noqa: E402
from reference_kernels import Case, export  # noqa: E402

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or bool(on_gpu.DEVICE), reason="scripts/gpu-check runs the benchmark itself"
)


def test_a_layer_on_the_gpu_is_measured_beside_pytorch(start, driver, tmp_path, monkeypatch):
    on_gpu.use_stand_in(driver, monkeypatch.setattr)
    monkeypatch.setattr(device, "SAMPLES", 1)
    monkeypatch.setattr(device, "SAMPLE_SECONDS", 0)
    case = Case("measured", nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), (3, 8))
    export(case, tmp_path)
    settings = f'[device]\nkind = "cuda"\nlibraries = ["{driver}"]\nimage_folder = "{driver}/images"\n'
    daemon = start(settings=settings, origin=f'path = "{tmp_path}"\n', environment={"LD_LIBRARY_PATH": str(driver)})
    with kasmina.connect(str(daemon.socket), device="cuda:0", arena_bytes=8 << 20) as client:
        report = sharing.measured(client, case, "cpu", lambda: None)
    assert report.keys() == {"step_us", "torch_us", "host_us"} and all(figure > 0 for figure in report.values())
