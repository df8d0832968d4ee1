"""A calendar that jumps while a trainer runs (docs/reliability.md).

The daemon reads it through libfaketime, which leaves alone the clock that never goes back, as it is when somebody
corrects a machine's time.
"""

import json
import shutil
from pathlib import Path

import kasmina
import pytest

from .conftest import settled
from .faults import ALONE, BREAKERS, QUICK, breaker, comes, forget, graft_elsewhere, holds, rides_through, tier
from .servers import S3, Urza
from .trainer import Trainer

HOUR, YEAR = 3600, 365 * 24 * 3600
JUMPS = [-YEAR, -HOUR, HOUR, YEAR]


class Calendar:
    """How far a daemon's calendar is from the machine's, in seconds; holds from its next look on."""

    def __init__(self, folder):
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        self.file = folder / "calendar"
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }

    def set(self, seconds):
        # In one go: the daemon may look while it is written.
        written = self.file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.rename(self.file)


@pytest.fixture
def calendar(tmp_path):
    return Calendar(tmp_path)


def stored_at(daemon, kernel):
    """When the copy on disk was stored, by the daemon's calendar, in seconds since 1970."""
    with daemon.operator() as operator:
        copies = operator.why(kernel)["copies"]
    return next(copy["stored_unix_ms"] for copy in copies if copy["tier"] == "sqlite") / 1000


@pytest.mark.parametrize("jump", JUMPS)
def test_a_calendar_that_jumps_costs_no_step_and_no_kernel(start, origin, calendar, jump):
    daemon = start(origin, settings=BREAKERS, environment=calendar.environment)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, "sqlite", 2)
        calendar.set(jump)
        rides_through(trainer, "cold-1")
        holds(daemon, "sqlite", 3)
        moved = stored_at(daemon, "cold-1") - stored_at(daemon, "cold-0")
        assert abs(moved - jump) < HOUR / 2, "the daemon's calendar did jump"
        # What is on disk was vouched for at another time: it is confirmed, and served where nobody can confirm it.
        forget(daemon, "cold-0")
        trainer.ask("cold-0").result(60)
        away = origin.rename(origin.with_name("away"))
        calendar.set(0)
        forget(daemon, "cold-1")
        trainer.ask("cold-1").result(60)
        trainer.steps()
        away.rename(origin)
        settled(lambda: comes(trainer, "cold-2"))
        rides_through(trainer, "cold-3")
        assert tier(daemon, "sqlite")["errors"] == 0
    assert daemon.terminate() == 0


@pytest.mark.parametrize("jump", JUMPS)
def test_what_was_not_to_be_had_before_a_jump_is_asked_for_again(start, origin, calendar, jump):
    memory = '[cache]\nnegative_ttl = "200ms"\n'
    daemon = start(origin, settings=memory + BREAKERS, environment=calendar.environment)
    with Trainer(daemon) as trainer:
        calendar.set(jump)
        for kernel in ("late", "later"):
            with pytest.raises(kasmina.KernelError) as unknown:
                trainer.ask(kernel).result(60)
            assert unknown.value.code == "kernel.not_found"
        calendar.set(0)
        trainer.steps()
        for kernel in ("late", "later"):
            shutil.copy(origin / "mlp.pt2", origin / f"{kernel}.pt2")
        # A calendar that was a year ahead would have it remembered for a year.
        settled(lambda: comes(trainer, "late"))
        trainer.steps()
    daemon.kill()
    daemon.process = daemon.start()
    with Trainer(daemon) as trainer:
        settled(lambda: comes(trainer, "later"))


@pytest.mark.parametrize("jump", JUMPS)
def test_a_breaker_opens_and_closes_whatever_the_calendar_says(serve, start, origin, calendar, jump):
    server = serve(lambda: Urza(origin))
    daemon = start(
        origin, settings=ALONE + BREAKERS + QUICK, origin=server.settings(), environment=calendar.environment
    )
    name = f"urza http://127.0.0.1:{server.port}/api/v1"
    with Trainer(daemon) as trainer:
        # Opened before the jump, closed after it; then the other way about.
        for n, offset in ((0, jump), (4, 0)):
            opened = breaker(daemon, name)["opened"]
            server.kill()
            rides_through(trainer, f"cold-{n}")
            rides_through(trainer, f"cold-{n + 1}")
            assert breaker(daemon, name)["opened"] > opened
            calendar.set(offset)
            rides_through(trainer, f"cold-{n + 2}")
            server.start()
            settled(lambda: comes(trainer, f"cold-{n + 3}"))
            assert breaker(daemon, name)["state"] == "closed"
            trainer.steps()


@pytest.mark.parametrize("jump", JUMPS)
def test_s3_that_finds_the_clock_wrong_is_used_when_it_is_right(serve, start, origin, calendar, jump):
    s3 = serve(S3)
    for n in range(4):
        (origin / f"cold-{n}.pt2").rename(s3.bucket / f"cold-{n}.pt2")
        entry = {"id": f"cold-{n}", "status": "validated", "kernel_binary_ref": f"s3://kernels/cold-{n}.pt2"}
        (origin / f"cold-{n}.json").write_text(json.dumps(entry))
    urza = serve(lambda: Urza(origin))
    daemon = start(
        origin,
        settings=ALONE + BREAKERS + QUICK,
        origin=urza.settings(timeout="60s") + s3.settings(),
        environment=calendar.environment,
    )
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        calendar.set(jump)
        asked = trainer.ask("cold-1")
        trainer.steps()
        with pytest.raises(kasmina.OriginError, match="its clock and this machine's differ"):
            asked.result(60)
        # What does not come from there comes.
        graft_elsewhere(daemon, "attention")
        rides_through(trainer, "cold-2")
        calendar.set(0)
        settled(lambda: comes(trainer, "cold-1"))
        rides_through(trainer, "cold-3")
