"""What tests of faults share: settings that give up soon, kernels asked for while something is broken, and what holds
all the while."""

import contextlib
import subprocess

import pytest
import torch

import kasmina.torch
from .conftest import settled
from .modules import TOKENS

# Breakers that open and close within a test.
BREAKERS = "".join(
    f'[{place}.breaker]\nfailure_threshold = 2\nopen_for = "50ms"\nmax_open_for = "50ms"\nsuccess_threshold = 1\n'
    for place in ("cache", "origin")
)
ALONE = "[cache.sqlite]\nenabled = false\n"
QUICK = '[origin.retry]\nattempts = 2\nbase_delay = "10ms"\nmax_delay = "20ms"\n'


def tier(daemon, name):
    with daemon.operator() as operator:
        tiers = operator.cache()["tiers"]
    return next(tier for tier in tiers if tier["name"] == name)


def breaker(daemon, name):
    return next(breaker for breaker in daemon.status()["breakers"] if breaker["name"] == name)


def holds(daemon, name, least):
    """Waits until a tier holds so many kernels: bytes are put there behind the load."""
    settled(lambda: (tier(daemon, name)["entries"] or 0) >= least)


def graft_elsewhere(daemon, kernel):
    """Grafts a kernel from another session."""
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="elsewhere", seeds=1)
        layer.seeds[0].graft(kernel, alpha=0.0, input_shape=TOKENS[1:])


def forget(daemon, kernel):
    """Takes a kernel out of memory alone."""
    with daemon.operator() as operator:
        operator.clear()
        settled(lambda: kernel not in [each["kernel"] for each in operator.cache()["kernels"]])


def rides_through(trainer, cold):
    """What holds in every row: steps go on, the cold kernel comes or is refused with a reason, and what is in memory
    is served."""
    asked = trainer.ask(cold)
    trainer.steps()
    try:
        asked.result(60)
    except kasmina.OriginError as error:
        assert error.code in ("origin.unavailable", "origin.breaker_open"), error
    hits = tier(trainer.daemon, "device")["hits"]
    graft_elsewhere(trainer.daemon, "mlp")
    assert tier(trainer.daemon, "device")["hits"] == hits + 1
    trainer.steps()


def comes(trainer, kernel):
    """Whether a kernel can be had now."""
    try:
        trainer.ask(kernel).result(60)
    except kasmina.KasminaError:
        return False
    return True


@contextlib.contextmanager
def small_disk(folder, size):
    """A disk of so many bytes; the test is skipped where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Leaves no room on the disk of a folder but what ``filler`` takes there."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
