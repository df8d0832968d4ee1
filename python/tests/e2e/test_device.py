"""Which device a daemon chooses, and what it says of it."""

import json
import os
import subprocess

import torch

import kasmina.torch
from .conftest import BINARY
from .modules import TOKENS

TOOL = BINARY.with_name("kasmina")
REFUSED = "kasminad: device.kind is cuda, and no GPU can be used: "
NAMED = "kasminad: device.kind is cuda, and device.ordinals names what cannot be used: "
LIBRARIES = ["libcuda", "NVRTC", "cuBLASLt", "cuDNN"]


def shown(daemon, *options):
    """What ``kasmina status`` prints."""
    command = [str(TOOL), "status", "--control-socket", str(daemon.control), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def refused(folder, settings, environment=()):
    """How a daemon with these settings of its device ends."""
    config = folder / "kasmina.toml"
    config.write_text(
        f'[daemon]\nsocket = "{folder}/k.sock"\ncontrol_socket = "{folder}/c.sock"\nstate_dir = "{folder}/state"\n'
        f'[origin]\npath = "{folder}"\n[device]\n{settings}'
    )
    variables = {**os.environ, **dict(environment)}
    return subprocess.run([str(BINARY), "--config", str(config)], env=variables, capture_output=True, text=True, timeout=60)


def test_auto_names_the_device_and_why_it_is_this_one(start):
    daemon = start(settings='[device]\nkind = "auto"\nthreads = 2\n')
    status = daemon.status()
    device = status["device"]
    assert device["names"] and device["kind"] == "auto" and device["threads"] == 2
    assert json.loads(shown(daemon, "--json"))["device"] == device
    assert [library["name"] for library in device["libraries"]] == LIBRARIES
    assert all(library["remark"] for library in device["libraries"])
    text = shown(daemon)
    for library in device["libraries"]:
        assert (library["path"] or "missing") in text and library["remark"] in text
    if device["gpus"]:
        assert device["no_gpu"] is None and [gpu["name"] for gpu in device["gpus"]] == device["names"]
        for gpu in device["gpus"]:
            assert gpu["model"] in text and 0 < gpu["budget_bytes"] <= gpu["memory_bytes"]
        print("skipped: there is a GPU here, so nothing says why there is none")
        return
    assert device["names"] == ["cpu"] and device["no_gpu"]
    # A driver alone is not enough: there may be no GPU, or no NVRTC in the usual places.
    without_driver = device["libraries"][0]["path"] is None
    assert without_driver == device["no_gpu"].startswith("no CUDA driver: libcuda was not found")
    assert "device cpu (device.kind is auto), 2 threads" in text and f"no GPU: {device['no_gpu']}" in text
    assert daemon.text().count("no GPU, kernels run on the CPU") == 1
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        layer(torch.randn(TOKENS, requires_grad=True)).sum().backward()


def test_the_processor_alone_looks_for_nothing_of_cuda(start):
    daemon = start(settings='[device]\nkind = "cpu"\nthreads = 1\n')
    device = daemon.status()["device"]
    expected = {"names": ["cpu"], "kind": "cpu", "threads": 1, "no_gpu": None, "gpus": [], "libraries": []}
    assert device == expected
    with open(f"/proc/{daemon.process.pid}/maps") as maps:
        loaded = maps.read()
    assert "/libc.so" in loaded and not any(name in loaded for name in ("libcuda", "libnvrtc", "libcublas"))


def test_cuda_without_a_gpu_ends_the_start_with_the_reason(start, tmp_path):
    device = start(settings='[device]\nkind = "auto"\nthreads = 2\n').status()["device"]
    if device["gpus"]:
        print("skipped: there is a GPU here, so the daemon would start")
        return
    done = refused(tmp_path, 'kind = "cuda"\n')
    assert REFUSED + device["no_gpu"] in done.stderr, done.stderr
    # What a driver that is there fails at may go well the next time, and systemd tries again.
    assert done.returncode == 78 or (done.returncode == 1 and device["libraries"][0]["path"]), done
    assert not (tmp_path / "k.sock").exists() and not (tmp_path / "c.sock").exists()


def test_a_number_that_no_gpu_has_ends_the_start_everywhere(tmp_path):
    done = refused(tmp_path, 'kind = "cuda"\nordinals = [4096]\n')
    assert done.returncode == 78 and NAMED in done.stderr, done


def test_settings_that_no_device_can_meet_are_named(tmp_path):
    done = refused(tmp_path, 'kind = "gpu"\nmemory = "1KiB"\nlibraries = ["venv"]\n')
    assert done.returncode == 78, done
    for line in (
        ":8: device.kind: write one of auto, cpu, cuda",
        ":9: device.memory: 1KiB is out of range",
        ':10: device.libraries: "venv" is not absolute',
    ):
        assert line in done.stderr, done.stderr
