"""Passes that fail are recorded, and fail again from their files alone, without a daemon."""

import json
import os
import stat
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import kasmina
import kasmina.torch
from .conftest import BINARY, settled
from .modules import TOKENS, export

KASMINA = BINARY.with_name("kasmina")
SAME, NONE, UNUSABLE, ANOTHER = 0, 1, 2, 4


class Log(nn.Module):
    """Gives numbers as long as its weight is positive."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 2.0))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x) * torch.log(self.weight)


class Root(nn.Module):
    """Shows which elements were dropped: a shift below 0 makes NaN of these and of no other."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(8))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return torch.sqrt(self.drop(x).abs() + self.shift)


class Wide(nn.Module):
    """One product forward, and two backward, each of which takes longer than a millisecond."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 1024) / 32)

    def forward(self, x):
        return x @ self.weight


WIDE = (1024, 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failing")
    export(Log(), TOKENS, folder / "log.pt2")
    export(Root(), TOKENS, folder / "root.pt2")
    export(Wide(), WIDE, folder / "wide.pt2")
    return folder


def settings(failures, more=""):
    return f'[engine]\nrecord_failures = "{failures}"\n{more}'


def records(failures, count, direction=None):
    """Waits for so many records; the daemon writes them on its own time."""
    pattern = f"*-{direction}-*.safetensors" if direction else "*.safetensors"
    found = lambda: sorted(Path(failures).glob(pattern))
    settled(lambda: len(found()) >= count)
    assert len(found()) == count, found()
    return found()


def replay(path, *options):
    """The exit code and what was printed."""
    done = subprocess.run([str(KASMINA), "replay", str(path), *options], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def layer(client, kernel, shape=TOKENS, width=8, **options):
    made = kasmina.torch.SeededLayer(nn.Linear(width, width), client, name="layer", seeds=1, **options)
    made.seeds[0].graft(kernel, alpha=0.5, input_shape=shape[1:])
    return made


def quietly(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


def spoil(made):
    """A step of training that has gone wrong, and that PyTorch does not hear of."""
    dict(made.seeds[0].named_parameters())["weight"].data[3] = -1.0


def test_a_kernel_that_gives_no_numbers_is_replayed_after_the_daemon_is_gone(start, folder, tmp_path):
    failures = tmp_path / "state" / "failures"
    daemon = start(folder, settings=settings(failures))
    client = daemon.connect()
    made = layer(client, "log")
    for _ in range(2):
        made(torch.randn(TOKENS)).sum().backward()
    spoil(made)
    x = torch.randn(TOKENS)
    quietly(lambda: made(x))
    (path,) = records(failures, 1)
    daemon.kill()
    assert stat.S_IMODE(os.stat(failures).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    tensors = load_file(path)
    assert torch.equal(tensors["input"], x)
    assert tensors["parameter.weight"][3] == -1.0
    assert tensors["artifact"].numpy().tobytes() == (folder / "log.pt2").read_bytes()

    # With the binary and the file alone.
    (folder / "log.pt2").rename(folder / "away")
    try:
        code, text = replay(path)
        assert code == SAME, text
        assert "reproduced: kernel.non_finite" in text
        first = text.split("first operation whose result is not finite\n")[1].splitlines()
        assert "log(weight)" in first[0] and "1 NaN" in first[1] and "of weight: -1 to 2" in first[2], first
        code, text = replay(path, "--json", "--trace")
    finally:
        (folder / "away").rename(folder / "log.pt2")
    report = json.loads(text)
    assert (code, report["answer"]) == (SAME, "reproduced")
    record = report["record"]
    assert record["kernel"] == "log" and record["train"] and record["direction"] == "forward"
    assert (record["uid"], record["step"], record["alpha"]) == (os.getuid(), 2, 0.5)
    operations = report["trace"]["operations"]
    assert "log(weight)" in operations[report["trace"]["culprits"][0]]["operation"]


def test_the_masks_of_the_pass_are_drawn_again(start, folder, tmp_path):
    daemon = start(folder, settings=settings(tmp_path / "failures"))
    x = torch.ones(512, 3, 8)

    def run(made):
        torch.manual_seed(11)
        return quietly(lambda: made(x))

    with daemon.connect() as client:
        made = layer(client, "root", x.shape)
        dropped = int((2 * (run(made) - 0.5 * made.host(x)) < 1.5).sum())
        assert 0 < dropped < x.numel()
        with torch.no_grad():
            dict(made.seeds[0].named_parameters())["shift"].fill_(-0.5)
        run(made)
    (path,) = records(tmp_path / "failures", 1)
    code, text = replay(path, "--json")
    trace = json.loads(text)["trace"]
    operation = trace["operations"][trace["culprits"][0]]
    assert code == SAME and "sqrt" in operation["operation"]
    # Where the mask is 0 there is no root: as many as were dropped in the pass with the same number.
    assert operation["results"][0]["nans"] == dropped


def test_a_pass_that_takes_too_long_does_so_again(start, folder, tmp_path):
    daemon = start(folder, settings=settings(tmp_path / "failures", 'time_limit = "1ms"\n'))
    with daemon.connect() as client:
        made = layer(client, "wide", WIDE, 1024)
        quietly(lambda: made(torch.randn(WIDE)))
    (path,) = records(tmp_path / "failures", 1)
    code, text = replay(path)
    assert (code, "reproduced: kernel.timeout" in text) == (SAME, True), text
    # At most the first product was done, as then: it has no longer than planning has left to it.
    assert "after 1 of" in text or "after 0 of" in text, text
    allowed_ns = json.loads(replay(path, "--json")[1])["record"]["allowed_ns"]
    assert 0 <= allowed_ns < 1_000_000
    code, text = replay(path, "--time-limit", "600")
    assert (code, "no error; then it was kernel.timeout" in text) == (NONE, True), text


def test_a_gradient_that_takes_too_long_does_so_again(start, folder, tmp_path):
    # Without guard and series, the forward is one operation, which no limit interrupts.
    more = 'time_limit = "5ms"\nnon_finite_guard = false\nseries_length = 0\nerror_threshold = 1000\n'
    daemon = start(folder, settings=settings(tmp_path / "failures", more))
    with daemon.connect() as client:
        made = layer(client, "wide", WIDE, 1024)
        x = torch.randn(WIDE, requires_grad=True)
        # The first pass makes the plans, for which there is no time either.
        successes = lambda: made.seeds[0].stats()["successes"]
        settled(lambda: quietly(lambda: made(x).sum().backward()) or successes() == 1)
    (path,) = records(tmp_path / "failures", 1, "backward")
    daemon.kill()
    tensors = load_file(path)
    assert torch.equal(tensors["input"], x) and torch.equal(tensors["grad_output"], torch.full(WIDE, 0.5))
    code, text = replay(path)
    assert (code, "reproduced: kernel.timeout" in text) == (SAME, True), text
    assert "backward in training mode" in text
    code, text = replay(path, "--time-limit", "600", "--json")
    assert (code, json.loads(text)["answer"]) == (NONE, "no_error")


def test_a_forward_that_fails_when_it_is_run_again_is_replayed(start, folder, tmp_path):
    daemon = start(folder, settings=settings(tmp_path / "failures"))
    with daemon.connect() as client:
        made = layer(client, "log", recompute=True)
        y = made(torch.randn(TOKENS, requires_grad=True))
        spoil(made)
        quietly(lambda: y.sum().backward())
    (path,) = records(tmp_path / "failures", 1)
    code, text = replay(path)
    assert code == SAME and "run again for its backward" in text, text


def test_a_host_in_the_daemon_that_fails_is_replayed(start, folder, tmp_path):
    daemon = start(folder, settings=settings(tmp_path / "failures"))
    with daemon.connect() as client:
        made = kasmina.torch.SeededLayer(Log(), client, name="layer", seeds=1, host="daemon", input_shape=TOKENS[1:])
        made.seeds[0].graft("log", alpha=0.5, input_shape=TOKENS[1:])
        with torch.no_grad():
            made.host.weight[0] = -1.0
        with pytest.raises(kasmina.KasminaError):
            quietly(lambda: made(torch.randn(TOKENS)))
    (path,) = records(tmp_path / "failures", 1)
    code, text = replay(path, "--json")
    assert (code, json.loads(text)["record"]["role"]) == (SAME, "host")


def test_what_does_not_fail_here_is_told_apart(start, folder, tmp_path):
    environment = {"KASMINA_FAILPOINT": "engine.execute.panic=log"}
    daemon = start(folder, environment=environment, settings=settings(tmp_path / "failures"))
    with daemon.connect() as client:
        made = layer(client, "log")
        quietly(lambda: made(torch.randn(TOKENS)))
        spoil(made)
        quietly(lambda: made(torch.randn(TOKENS)))
    one, other = sorted(records(tmp_path / "failures", 2), key=lambda path: path.stat().st_mtime_ns)
    code, text = replay(one)
    assert (code, "no error; then it was kernel.runtime" in text) == (NONE, True), text
    code, text = replay(other)
    assert (code, "another error: kernel.non_finite" in text) == (ANOTHER, True), text


def test_a_kernel_that_only_wider_limits_accept_is_replayed(start, folder, tmp_path):
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    path = kernels / "log.pt2"
    path.write_bytes((folder / "log.pt2").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        for number in range(10_001):
            archive.writestr(f"{root}/extra/{number}", b"")
    more = "[validator]\nmax_archive_entries = 20000\n"
    daemon = start(kernels, settings=settings(tmp_path / "failures") + more)
    with daemon.connect() as client:
        made = layer(client, "log")
        spoil(made)
        quietly(lambda: made(torch.randn(TOKENS)))
    (record,) = records(tmp_path / "failures", 1)
    code, text = replay(record)
    assert code == SAME, text


def test_files_that_are_no_records_are_refused(start, folder, tmp_path):
    daemon = start(folder, settings=settings(tmp_path / "failures"))
    with daemon.connect() as client:
        made = layer(client, "log")
        spoil(made)
        quietly(lambda: made(torch.randn(TOKENS)))
    (path,) = records(tmp_path / "failures", 1)
    whole = path.read_bytes()
    damaged = tmp_path / "damaged"
    for content, reason in [
        (whole[:-1], "no safetensors file"),
        (b"", "no safetensors file"),
        (b"\xff" * 64, "header"),
        (whole.replace(b"PK\x03\x04", b"PK\x03\x05", 1), "SHA-256"),
        (whole.replace(b'\\"format\\":1', b'\\"format\\":9', 1), "format 9"),
    ]:
        assert content != whole
        damaged.write_bytes(content)
        code, text = replay(damaged)
        assert code == UNUSABLE and reason in text and str(damaged) in text, (code, text)
        assert "copy it again" in text or "format 9" in text, text
    save_file({"input": torch.zeros(2)}, damaged)
    code, text = replay(damaged)
    assert code == UNUSABLE and "kasmina.record" in text, text
    assert replay(tmp_path / "nowhere")[0] == UNUSABLE


def test_a_row_of_failures_and_a_full_folder_are_bounded_and_counted(start, folder, tmp_path):
    failures = tmp_path / "failures"
    failures.mkdir()
    metrics = '[metrics]\nlisten = "127.0.0.1:0"\n'
    more = 'error_threshold = 100\nrecord_failures_max_bytes = "1MiB"\n'
    daemon = start(folder, settings=settings(failures, more) + metrics)

    def counts():
        return daemon.status()["records"]

    with daemon.connect() as client:
        made = layer(client, "log")
        spoil(made)
        quietly(lambda: [made(torch.randn(TOKENS)) for _ in range(8)])
        settled(lambda: counts()["written"] == 3)
        assert counts()["dropped"]["repeated"] == 5
        assert made.seeds[0].stats()["failures"]["non_finite"] == 8
        told = lambda: daemon.text().count("failing passes were not recorded")
        settled(lambda: told() > 0)
        assert told() == 1, "once for a burst"
        # Another kind of failure, but the folder is full by now.
        (failures / "notes").write_bytes(bytes(1 << 20))
        y = quietly(lambda: made.eval()(torch.randn(TOKENS)))
        assert y.isfinite().all()
        other = layer(client, "wide", WIDE, 1024)
        with torch.no_grad():
            dict(other.seeds[0].named_parameters())["weight"].fill_(float("nan"))
        quietly(lambda: other(torch.randn(WIDE)))
        settled(lambda: counts()["dropped"]["full"] == 1)
    assert len(list(failures.glob("*.safetensors"))) == 3
    from .test_metrics import scrape

    series = scrape(daemon)
    assert series["kasmina_failure_records_total"] == 3
    assert series['kasmina_failure_records_dropped_total{reason="full"}'] == 1
    assert "a failing pass was recorded" in daemon.text()


def test_nothing_is_recorded_where_no_folder_is_named(start, folder, tmp_path):
    daemon = start(folder)
    with daemon.connect() as client:
        made = layer(client, "log")
        spoil(made)
        quietly(lambda: made(torch.randn(TOKENS)))
        assert made.seeds[0].stats()["failures"]["non_finite"] == 1
    assert daemon.status()["records"] is None
    assert daemon.terminate() == 0
    assert list(daemon.folder.rglob("*.safetensors")) == []


def test_a_daemon_that_leaves_writes_what_it_has(start, folder, tmp_path):
    daemon = start(folder, settings=settings(tmp_path / "failures"))
    with daemon.connect() as client:
        made = layer(client, "log")
        spoil(made)
        quietly(lambda: made(torch.randn(TOKENS)))
    assert daemon.terminate() == 0
    (path,) = (tmp_path / "failures").glob("*.safetensors")
    assert replay(path)[0] == SAME


def test_a_folder_that_cannot_be_written_ends_the_start(daemon, folder, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    config = tmp_path / "kasmina.toml"
    for failures, reason in [(file, "engine.record_failures"), (file / "below", "engine.record_failures")]:
        config.write_text(
            f'[daemon]\nsocket = "{tmp_path}/k.sock"\ncontrol_socket = "{tmp_path}/c.sock"\n'
            f'state_dir = "{tmp_path}/state"\n[origin]\npath = "{folder}"\n{settings(failures)}'
        )
        done = subprocess.run([str(BINARY), "--config", str(config)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 78, done.stderr
        assert reason in done.stderr and str(failures) in done.stderr, done.stderr
    config.write_text('[engine]\nrecord_failures = "failures"\n')
    done = subprocess.run([str(BINARY), "--config", str(config), "--check-config"], capture_output=True, text=True)
    assert done.returncode == 78 and "is not absolute" in done.stderr, done.stderr
