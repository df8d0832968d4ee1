"""Kernels in S3, named by Urza's catalogue: they come, and training goes on while the store breaks in every way
(docs/reliability.md)."""

import hashlib
import json
import re
import shutil
import subprocess

import kasmina
import pytest
from torch import nn

from .conftest import BINARY, settled
from .faults import ALONE, BREAKERS, QUICK, breaker, comes, forget, graft_elsewhere, rides_through
from .modules import TOKENS, export
from .proxy import FAULTS, Proxy
from .servers import S3, Urza
from .trainer import Trainer


class Supply:
    """Urza with a catalogue of its own, S3 with the bytes, and a proxy before S3 alone."""

    def __init__(self, start, catalogue, urza, s3, proxy):
        self.start, self.catalogue, self.urza, self.s3, self.proxy = start, catalogue, urza, s3, proxy

    def add(self, artifact, kernel):
        """Puts an artifact into the bucket and its entry into the catalogue."""
        shutil.copy(artifact, self.s3.bucket / f"{kernel}.pt2")
        entry = {
            "id": kernel,
            "blueprint_id": kernel,
            "status": "validated",
            "compilation_pipeline": "standard",
            "kernel_binary_ref": f"s3://kernels/{kernel}.pt2",
            "validation_report": {"checksum": digest(artifact)},
        }
        (self.catalogue / f"{kernel}.json").write_text(json.dumps(entry))

    def daemon(self, timeout="500ms", settings=QUICK, **options):
        origin = self.urza.settings(timeout=timeout) + self.s3.settings(self.proxy.port, **options)
        return self.start(self.catalogue, settings=ALONE + BREAKERS + settings, origin=origin)


@pytest.fixture
def supply(serve, start, origin, tmp_path):
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    s3, urza = serve(S3), serve(lambda: Urza(catalogue))
    with Proxy(("127.0.0.1", s3.port)) as proxy:
        supply = Supply(start, catalogue, urza, s3, proxy)
        for artifact in origin.iterdir():
            supply.add(artifact, artifact.stem)
        yield supply


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_memory(daemon):
    """The kernels in memory with the digests of their bytes."""
    with daemon.operator() as operator:
        return {each["kernel"]: each["digest"] for each in operator.cache()["kernels"]}


def all_right(daemon, origin):
    """Nothing is in memory but the bytes that were put into the bucket."""
    held = in_memory(daemon)
    assert held == {kernel: digest(origin / f"{kernel}.pt2") for kernel in held} and "mlp" in held, held


def test_kernels_come_from_s3(supply, origin):
    daemon = supply.daemon(timeout="60s")
    with Trainer(daemon) as trainer:
        assert supply.proxy.seen > 0, "the kernel that is trained came from the store"
        trainer.ask("cold-0").result(60)
        trainer.ask("attention").result(60)
        rides_through(trainer, "cold-1")
        # That there is no such blob, or another than the entry says, is an answer, and no failure of the store.
        (supply.s3.bucket / "cold-2.pt2").unlink()
        shutil.copy(origin / "attention.pt2", supply.s3.bucket / "cold-3.pt2")
        for kernel, code in (("cold-2", "kernel.not_found"), ("cold-3", "kernel.checksum")):
            with pytest.raises(kasmina.KernelError) as refused:
                trainer.ask(kernel).result(60)
            assert refused.value.code == code
        assert breaker(daemon, "s3")["state"] == "closed"
        trainer.steps()
        all_right(daemon, origin)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_s3_that_answers_badly_stops_no_step(supply, origin, fault):
    daemon = supply.daemon()
    with Trainer(daemon) as trainer:
        supply.proxy.set(fault, delay=0.02, after=600)
        codes = []
        for n in range(3):
            asked = trainer.ask(f"cold-{n}")
            trainer.steps()
            error = asked.exception(60)
            codes.append(getattr(error, "code", error))
        if fault == "latency":
            assert codes == [None] * 3, "late is no error"
        elif fault == "corrupt":
            assert set(codes) <= {"kernel.checksum", "origin.unavailable", "origin.breaker_open"}, codes
            assert "kernel.checksum" in codes
        else:
            assert set(codes) <= {"origin.unavailable", "origin.breaker_open"}, codes
            assert breaker(daemon, "s3")["opened"] > 0
        graft_elsewhere(daemon, "mlp")
        all_right(daemon, origin)
        supply.proxy.set(None)
        settled(lambda: comes(trainer, "cold-5"))
        # What was refused is not remembered: the bytes in the store are right.
        settled(lambda: all(comes(trainer, f"cold-{n}") for n in range(3)))
        rides_through(trainer, "cold-6")
        all_right(daemon, origin)


def test_no_step_waits_for_an_s3_that_hangs(supply, origin):
    daemon = supply.daemon(timeout="60s")
    with Trainer(daemon) as trainer:
        supply.proxy.set("hang")
        asked = trainer.ask("cold-0")
        assert supply.proxy.hanging.wait(20)
        trainer.steps(50)
        assert not asked.done(), "the store's answer is held back, and fifty steps went by"
        supply.proxy.set(None)
        asked.result(60)
        rides_through(trainer, "cold-1")
        all_right(daemon, origin)


def test_s3_that_is_killed_is_used_when_it_is_back(supply, origin):
    daemon = supply.daemon()
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        supply.s3.kill()
        for n in range(1, 5):
            rides_through(trainer, f"cold-{n}")
        store = breaker(daemon, "s3")
        assert store["opened"] > 0 and store["last_failure"], store
        assert breaker(daemon, f"urza http://127.0.0.1:{supply.urza.port}/api/v1")["opened"] == 0
        supply.s3.start()
        settled(lambda: comes(trainer, "cold-5"))
        # And again, down for a moment each time.
        for n in (6, 8):
            supply.s3.kill()
            rides_through(trainer, f"cold-{n}")
            supply.s3.start()
            rides_through(trainer, f"cold-{n + 1}")
        forget(daemon, "cold-0")
        settled(lambda: comes(trainer, "cold-0"))
        trainer.steps()
        all_right(daemon, origin)


def test_a_large_blob_comes_whole_through_a_network_that_cuts(supply, tmp_path):
    large = tmp_path / "large.pt2"
    wide = nn.Sequential(nn.Linear(8, 350_000), nn.GELU(), nn.Linear(350_000, 8))
    export(wide, TOKENS, large)
    size = large.stat().st_size
    assert size > 20 << 20
    supply.add(large, "large")
    retries = '[origin.retry]\nattempts = 10\nbase_delay = "1ms"\nmax_delay = "5ms"\n'
    daemon = supply.daemon(timeout="60s", settings=retries, part_size="1MiB")
    with Trainer(daemon) as trainer:
        # First the server dies and returns while the answer is held back, and then no connection lives long.
        supply.proxy.set("hang")
        asked = trainer.ask("large")
        assert supply.proxy.hanging.wait(20)
        trainer.steps()
        assert not asked.done()
        supply.s3.kill()
        supply.s3.start()
        before, cut_after = supply.proxy.seen, 700_000
        supply.proxy.set("truncate", after=cut_after)
        trainer.steps()
        asked.result(120)
        assert supply.proxy.seen - before >= size // cut_after
        assert in_memory(daemon)["large"] == digest(large)
        assert breaker(daemon, "s3")["opened"] == 0, "each part went on from where it was cut"
        trainer.steps()


def test_credentials_that_are_refused_are_named_and_looked_at_again(supply, origin):
    # The kernel that is trained comes from Urza itself, so that training begins.
    (supply.catalogue / "mlp.json").unlink()
    shutil.copy(origin / "mlp.pt2", supply.catalogue)
    wrong = supply.s3.write_credentials("wrong", "guessed secret")
    daemon = supply.daemon(timeout="60s", credentials=wrong)

    def refused(kernel):
        with pytest.raises(kasmina.OriginError) as error:
            trainer.ask(kernel).result(60)
        return str(error.value)

    with Trainer(daemon) as trainer:
        assert "403" in (text := refused("cold-0")) and "origin.s3.credentials_file" in text
        wrong.unlink()
        assert "origin.s3.credentials_file" in refused("cold-1")
        trainer.steps()
        wrong.write_text(supply.s3.credentials.read_text())
        settled(lambda: comes(trainer, "cold-0"))
        rides_through(trainer, "cold-1")
        all_right(daemon, origin)
        assert "guessed" not in daemon.text()


def test_what_is_published_to_s3_is_grafted(supply, origin, kernels):
    daemon = supply.daemon(timeout="20s")

    def publish(artifact, name):
        words = ["publish", str(kernels / artifact), "--config", str(daemon.config), "--name", name]
        command = [str(BINARY.with_name("kasmina")), *words, "--to", "s3://kernels/team"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with Trainer(daemon) as trainer:
        first = publish("mlp.pt2", "new")
        assert first.returncode == 0 and "new published" in first.stdout, first
        assert re.search("s3://kernels/team/kernels/new/[0-9a-f]{64}.pt2", first.stdout)
        trainer.ask("new").result(60)
        trainer.steps()
        assert in_memory(daemon)["new"] == digest(kernels / "mlp.pt2")
        again = publish("mlp.pt2", "new")
        assert again.returncode == 0 and "new is there already" in again.stdout, again
        other = publish("attention.pt2", "new")
        assert other.returncode != 0 and "published already" in other.stderr, other
        forget(daemon, "new")
        rides_through(trainer, "new")
        assert in_memory(daemon)["new"] == digest(kernels / "mlp.pt2")

        # Nothing is registered whose bytes are not stored, and it may be tried again.
        supply.s3.kill()
        failed = publish("attention.pt2", "late")
        assert failed.returncode != 0 and "s3" in failed.stderr, failed
        assert not (supply.catalogue / "late.json").exists()
        supply.s3.start()
        done = publish("attention.pt2", "late")
        assert done.returncode == 0 and "late published" in done.stdout, done
        settled(lambda: comes(trainer, "late"))
        trainer.steps()
