"""The growth experiment of the examples, as somebody would run it, but short."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_a_controller_grows_a_network_and_reports(start, tmp_path):
    daemon = start(kernels=ROOT / "examples/kernels")
    report = tmp_path / "growth"
    phases = ["--first", "1", "--training", "1", "--blending", "1", "--holding", "1"]
    # No gain is small enough to be pruned in one, none large enough to stay in the other.
    for gain, decision in (("-100", "stays"), ("100", "pruned")):
        options = ["--socket", str(daemon.socket), "--report", str(report), "--epochs", "7", "--gain", gain, *phases]
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples/grow_cifar_like.py"), *options, "--kernels", "squeeze-excite"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "python"), "MPLCONFIGDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert f"after, {decision}" in done.stdout.splitlines()[-2], done.stdout
        page = report.with_suffix(".html").read_text()
        assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        for said in ("data:image/png;base64,", f"<td>{decision}</td>", "from training, to blending"):
            assert said in page, said
        assert ("<td>fossilized</td>" in page) == (decision == "stays")
        assert ("<td>pruned</td>" in page) == (decision == "pruned")
