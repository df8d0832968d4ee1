"""What the validator asks before a kernel reaches a seed, and how a trainer learns of it."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import BINARY
from .modules import TOKENS, export, twin

TOOL = BINARY.with_name("kasmina")


class Log(nn.Module):
    """Of negative numbers, there is no logarithm."""

    def forward(self, x):
        return torch.log(x)


def graft(client, kernel):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
    layer.seeds[0].graft(kernel, alpha=0.5, input_shape=TOKENS[1:])
    return layer


def refusal(client, kernel):
    with pytest.raises(kasmina.KernelError) as caught:
        graft(client, kernel)
    assert caught.value.code == "kernel.rejected", caught.value
    return str(caught.value)


def copied(kernels, tmp_path):
    return shutil.copytree(kernels, tmp_path / "kernels")


def test_a_kernel_that_fails_its_trial_never_reaches_a_seed(start, kernels, tmp_path):
    folder = copied(kernels, tmp_path)
    export(Log(), TOKENS, folder / "log.pt2")
    with start(kernels=folder).connect() as client:
        first = refusal(client, "log")
        assert "trial.finite" in first and "not finite" in first
        # Remembered: the artifact may even be gone.
        (folder / "log.pt2").unlink()
        again = refusal(client, "log")
        assert "trial.finite" in again and "known for now" in again
    with start(kernels=folder, settings="[validator]\ntrial = false\n").connect() as client:
        export(Log(), TOKENS, folder / "log.pt2")
        graft(client, "log")


def test_only_what_a_trusted_key_signed_runs(start, kernels, tmp_path):
    folder = copied(kernels, tmp_path)
    key = tmp_path / "key.pem"
    made = subprocess.run([TOOL, "keygen", "--out", key], check=True, capture_output=True, text=True)
    trusted = next(line for line in made.stdout.splitlines() if line.startswith("trusted_keys"))
    subprocess.run([TOOL, "sign", folder / "mlp.pt2", "--key", key], check=True, capture_output=True)
    settings = f"[validator]\nrequire_signature = true\n{trusted}\n"
    with start(kernels=folder, settings=settings).connect() as client:
        layer = graft(client, "mlp")
        x = torch.randn(TOKENS)
        truth = 0.5 * layer.host(x) + 0.5 * twin("mlp")(x)
        assert torch.allclose(layer(x), truth, atol=1e-5)
        assert "not signed" in refusal(client, "attention")
        # Another kernel under a name that was signed.
        shutil.copy(folder / "mlp.pt2.sig", folder / "drop.pt2.sig")
        assert "signature.trusted" in refusal(client, "drop")
