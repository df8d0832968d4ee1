"""A real kasminad for each test that asks for one, on a folder of its own."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import kasmina  # noqa: E402
import kasmina.torch._return  # noqa: E402
from . import modules, on_gpu  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
BINARY = Path(os.environ.get("KASMINAD", ROOT / "target/debug/kasminad"))

torch.set_num_threads(2)
if on_gpu.DEVICE:
    on_gpu.prepare(os.environ.get("KASMINA_DRIVER"))
# How long a layer waits for all of its seeds after the daemon's return, before it goes on with some. Tests look at all.
kasmina.torch._return.PATIENCE_S = 60.0


def settled(condition, patience=20.0):
    """Polls until the condition holds; the daemon frees what a dead trainer held on its own time."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "did not settle"
        time.sleep(0.01)


@contextlib.contextmanager
def ended(process):
    """A process that does not outlive its block, however that is left: a failed assertion must not wait for it."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def device_settings(settings):
    """Which device a daemon runs on that its test says nothing of: the one of the environment, as scripts/gpu-check has it."""
    kind = os.environ.get("KASMINA_DEVICE")
    if kind is None or "[device]" in settings:
        return ""
    text = f'[device]\nkind = "{kind}"\nimage_folder = "{os.environ["KASMINA_IMAGES"]}"\n'
    # Before those of a Python environment that is active.
    driver = os.environ.get("KASMINA_DRIVER")
    return text + (f'libraries = ["{driver}"]\n' if driver else "")


def device_environment():
    """Where the daemon finds a driver that only it is to find: PyTorch in this process would ask that one, too."""
    folder = os.environ.get("KASMINA_DRIVER")
    return {"LD_LIBRARY_PATH": folder} if folder else {}


class Daemon:
    """A running kasminad."""

    def __init__(self, folder, kernels, environment=None, settings="", origin=None):
        self.folder = Path(folder)
        self.socket = self.folder / "kasmina.sock"
        self.control = self.folder / "control.sock"
        self.config = self.folder / "kasmina.toml"
        directory = f'path = "{kernels}"\n'
        self.config.write_text(
            f'[daemon]\nsocket = "{self.socket}"\ncontrol_socket = "{self.control}"\n'
            f'state_dir = "{self.folder / "state"}"\n[origin]\n{origin or directory}'
            f'[log]\nlevel = "debug"\n{device_settings(settings)}{settings}'
        )
        self.log = open(self.folder / "log", "ab")
        self.environment = {**os.environ, **device_environment(), **(environment or {})}
        self.process = self.start()

    def command(self, *arguments):
        return [str(BINARY), "--config", str(self.config), *arguments]

    def start(self):
        process = subprocess.Popen(self.command(), stderr=self.log, env=self.environment)

        def answers():
            assert process.poll() is None, f"kasminad ended: {self.text()}"
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.control)) == 0

        settled(answers)
        return process

    def text(self):
        return (self.folder / "log").read_text()

    def connect(self):
        return kasmina.connect(str(self.socket), device=on_gpu.DEVICE)

    def operator(self):
        return kasmina.Operator(str(self.control))

    def status(self):
        with self.operator() as operator:
            return operator.status()

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stopped(self):
        """Whether every thread of it is: one that was sent SIGSTOP still runs for a moment."""
        states = set()
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                states.add((task / "stat").read_text().rsplit(")", 1)[1].split()[0])
            except (FileNotFoundError, ProcessLookupError):
                states.add("ended")  # meanwhile: so it is not stopped yet
        return states == {"T"}

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def terminate(self):
        self.process.terminate()
        return self.process.wait(30)

    def close(self):
        """Ends it if it still runs, and removes what it left."""
        if self.process.poll() is None:
            self.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def on_disk(daemon):
    """The kernels in its SQLite tier. Never makes the file: the daemon may not have come to it yet."""
    path = daemon.folder / "state" / "cache.sqlite"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            return [row[0] for row in file.execute("SELECT id FROM kernels")]
    except sqlite3.OperationalError as error:
        assert "no such table" in str(error) or "unable to open" in str(error), error
        return []


@contextlib.contextmanager
def daemons(kernels, **options):
    """Starts daemons, each in a folder of its own; they end with the context."""
    with contextlib.ExitStack() as started:

        def begin(kernels=kernels, kind=Daemon, **more):
            # Sockets have short names, and pytest's own folders have long ones.
            daemon = kind(tempfile.mkdtemp(prefix="kasmina-"), kernels, **options, **more)
            started.callback(daemon.close)
            return daemon

        yield begin


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """A directory origin with the suite's kernels and the shipped ones."""
    folder = tmp_path_factory.mktemp("kernels")
    shutil.copytree(ROOT / "examples/kernels", folder, dirs_exist_ok=True)
    with torch.device("cpu"):
        modules.write(folder)
    return folder


@pytest.fixture
def origin(tmp_path, kernels):
    """A directory origin of the test's own, with kernels that nothing has loaded yet."""
    folder = tmp_path / "origin"
    folder.mkdir()
    for name in ("mlp", "attention"):
        shutil.copy(kernels / f"{name}.pt2", folder)
    for n in range(12):
        shutil.copy(kernels / "mlp.pt2", folder / f"cold-{n}.pt2")
    return folder


@pytest.fixture
def serve():
    """Starts servers; they end with the test."""
    started = []

    def begin(kind):
        server = kind()
        started.append(server)
        server.start()
        return server

    yield begin
    for server in started:
        server.resume()
        server.close()


@pytest.fixture
def start(kernels):
    """Starts daemons; what still runs at the end is killed."""
    with daemons(kernels) as begin:
        yield begin


@pytest.fixture(scope="session")
def driver():
    """The folder of the stand-in for a GPU, its kernels compiled once for all runs of the suite."""
    folder = ROOT / "target/stand-in"
    subprocess.run([ROOT / "tests/cuda/build", folder], check=True)
    return folder


@pytest.fixture
def start_on_cuda(start, driver):
    """Starts daemons on the stand-in."""

    def begin(settings="", **variables):
        device = f'[device]\nkind = "cuda"\nlibraries = ["{driver}"]\nimage_folder = "{driver}/images"\n'
        return start(settings=device + settings, environment={"LD_LIBRARY_PATH": str(driver), **variables})

    return begin


@pytest.fixture
def daemon(start):
    return start()


@pytest.fixture
def client(daemon):
    with daemon.connect() as client:
        yield client
