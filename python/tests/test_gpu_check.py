"""What scripts/gpu-check makes of its checks, on a machine that needs no GPU."""

import importlib.machinery
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/gpu-check"
ABOUT = {"date": "2026-11-30", "card": "a card, 580.1, 1 MiB", "torch": "2.15, CUDA 13", "commit": "abc", "processors": "2"}


@pytest.fixture
def script(tmp_path, monkeypatch):
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    sys.modules["gpu_check"] = module  # where dataclasses look their annotations up
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    module.FOLDER = tmp_path
    return module


def python(text):
    return [sys.executable, "-c", text]


def test_a_check_passes_fails_runs_out_of_time_or_is_not_run(script, tmp_path):
    until = time.monotonic() + 60
    says = script.perform(script.Check("it says", python("print('one'); print('two | three')")), until)
    fails = script.perform(script.Check("it fails", python("print('why'); raise SystemExit(9)")), until)
    stays = script.perform(script.Check("it stays", python("print('begun', flush=True); import time; time.sleep(60)"), limit=5), until)
    missing = script.perform(script.Check("a tool", ["nothing"], missing="it is not here"), until)
    late = script.perform(script.Check("too late", ["nothing"]), time.monotonic() + 1)
    results = [says, fails, stays, missing, late]
    assert [r.outcome for r in results] == ["passed", "failed (9)", "ran out of time", "not run", "not run"]
    assert [r.detail for r in results] == ["two | three", "why", "begun", "it is not here", "no time was left"]
    assert (tmp_path / "logs/it-fails.txt").read_text() == "why\n"
    page = script.page(ABOUT, results, 12)
    assert "| it says | passed | 0 | two / three |" in page
    assert "## it fails: failed (9)" in page and "## it stays: ran out of time" in page
    assert "## it says" not in page and "## a tool" not in page


def test_counts_are_those_of_cargo_and_of_pytest(script):
    assert script.counted("running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored") == "3 passed, 0 failed"
    assert script.counted("2 failed, 31 passed in 9.1s") == "2 failed, 31 passed"
    assert script.counted("no tests") == "no count"


def test_figures_stand_beside_what_is_to_be_reached(script, tmp_path):
    assert script.reached() == []
    times = {"forward_us": 10.0, "forward_backward_us": 40.0, "host_us": 4.0}
    seeds = {"linear": [{"seeds": n, "beside_us": 10.0, "one_after_the_other_us": 8.0 * n} for n in (1, 2, 4, 8)]}
    layer = {"passes": 100000, "free_bytes": [500, 400], "held_bytes": [7, 7]}
    ours = {"device": "a card", "kernels": {"a": times, "b": times}, "seeds": seeds, "layer": layer}
    theirs = {name: {"forward_us": us, "forward_backward_us": 60.0} for name, us in (("a", 5.0), ("b", 20.0))}
    report = {"ours": ours, "eager": theirs, "compiled": {}}
    (tmp_path / "device.json").write_text(json.dumps(report))
    (tmp_path / "flat.json").write_text(json.dumps(report))
    (tmp_path / "bfloat16.json").write_text(json.dumps({**report, "eager": {"a": theirs["b"]}}))
    (tmp_path / "mps.json").write_text(json.dumps({"step_us": 90.4, "torch_us": 120.0, "host_us": 8.25}))
    rows = {name: (aim, figure) for name, aim, figure in script.reached()}
    eager = "times as fast as PyTorch eager, forward, geometric mean"
    assert rows[eager] == ("≥ 1.2", "1.00 (of 2 kernels, 0.50 to 2.00)")
    assert rows[eager.replace("eager", "compiled")] == ("≥ 1.0", "not measured")
    assert rows[eager.replace("eager", "eager, bfloat16")] == ("≥ 1.2", "2.00 (of 1 kernels, 2.00 to 2.00)")
    on_the_card = "a training step of four seeds on the card with MPS, µs, beside PyTorch's own in one process"
    assert rows[on_the_card] == ("", "90, 120") and on_the_card.replace("with", "without") not in rows
    assert rows["the trainer's thread in a forward through the daemon with MPS, µs"] == ("", "8.2")
    assert rows["four seeds beside each other against one after the other, linear"] == ("≥ 3", "3.20")
    assert rows["the host's part of a forward, µs, median of the kernels"] == ("≤ 10", "4.0")
    assert rows["bytes that 100000 passes have left on the device, and in its budget"] == ("0, 0", "100, 0")


def test_what_cannot_be_told_is_left_as_it_is(script, tmp_path, monkeypatch):
    report = tmp_path / "gpu-report.md"
    report.write_text("not yet run")
    monkeypatch.setattr(script, "REPORT", report)
    monkeypatch.setattr(script, "PROGRAMS", script.ROOT / "target/no-such-programs.tar.xz")
    with pytest.raises(SystemExit, match="make it with scripts/gpu-check build"):
        script.run(10)
    assert report.read_text() == "not yet run"
