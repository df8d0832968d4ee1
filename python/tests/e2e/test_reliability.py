"""Faults of the kernel supply, one a test, and a training loop that goes on through each (docs/reliability.md).

That no step waits for supply is shown by order, not by a clock: where a load hangs, the steps are taken and counted
while it is known to hang, and it ends only afterwards.
"""

import concurrent.futures
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess

import pytest
import torch

import kasmina.torch
from .conftest import settled
from .faults import (
    ALONE,
    BREAKERS,
    QUICK,
    breaker,
    comes,
    fill,
    forget,
    graft_elsewhere,
    holds,
    rides_through,
    small_disk,
    tier,
)
from .modules import TOKENS
from .proxy import Proxy
from .servers import PASSWORD, Postgres, Redis, Urza, binary
from .trainer import Trainer

SHARED = [Redis, Postgres]


# --- tiers that nodes share ------------------------------------------------------------------------------------------


def shared(serve, start, origin, kind, patience="2s", through=None):
    server = serve(kind)
    proxy = Proxy(("127.0.0.1", server.port)) if through else None
    settings = server.settings(proxy.port if proxy else None).replace('"2s"', f'"{patience}"')
    daemon = start(origin, settings=settings + ALONE + BREAKERS)
    return (server, daemon, proxy) if through else (server, daemon)


@pytest.mark.parametrize("kind", SHARED)
def test_a_tier_that_is_killed_is_gone_round_and_returns(serve, start, origin, kind):
    server, daemon = shared(serve, start, origin, kind)
    with Trainer(daemon) as trainer:
        holds(daemon, kind.tier, 1)
        server.kill()
        for n in range(4):
            rides_through(trainer, f"cold-{n}")
        assert tier(daemon, kind.tier)["errors"] > 0
        server.start() if kind is Redis else server.restart()
        # Every load tries it again as soon as the breaker lets one pass.
        settled(lambda: loaded_anew(trainer, "cold-4") and tier(daemon, kind.tier)["entries"])
        rides_through(trainer, "cold-0")


@pytest.mark.parametrize("kind", SHARED)
def test_no_step_waits_for_a_tier_that_is_paused(serve, start, origin, kind):
    server, daemon = shared(serve, start, origin, kind, patience="60s")
    with Trainer(daemon) as trainer:
        holds(daemon, kind.tier, 1)
        server.pause()
        asked = trainer.ask("cold-0")
        trainer.steps(50)
        assert not asked.done(), "the load hangs on the paused server, and fifty steps went by"
        server.resume()
        asked.result(60)
        rides_through(trainer, "cold-1")


@pytest.mark.parametrize("kind", SHARED)
def test_a_tier_that_returns_empty_is_filled_again(serve, start, origin, kind):
    server, daemon = shared(serve, start, origin, kind)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, kind.tier, 2)
        server.restart_empty()
        forget(daemon, "cold-0")
        for n in range(4):
            rides_through(trainer, f"cold-{n}")
        holds(daemon, kind.tier, 1)


@pytest.mark.parametrize("kind", SHARED)
def test_a_tier_that_refuses_the_password_is_gone_round(serve, start, origin, kind):
    server, daemon = shared(serve, start, origin, kind)
    with Trainer(daemon) as trainer:
        holds(daemon, kind.tier, 1)
        server.refuse_auth()
        for n in range(4):
            rides_through(trainer, f"cold-{n}")
        assert tier(daemon, kind.tier)["errors"] > 0
        assert PASSWORD not in daemon.text()


def test_redis_out_of_memory_still_reads(serve, start, origin):
    server, daemon = shared(serve, start, origin, Redis)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, "redis", 2)
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.ask("CONFIG", "SET", "maxmemory", "1")
        errors = tier(daemon, "redis")["errors"]
        for n in range(1, 5):
            rides_through(trainer, f"cold-{n}")
        settled(lambda: tier(daemon, "redis")["errors"] > errors)
        assert breaker(daemon, "redis")["opened"] == 0, "what it holds can still be read"
        hits = tier(daemon, "redis")["hits"]
        forget(daemon, "cold-0")
        trainer.ask("cold-0").result(60)
        assert tier(daemon, "redis")["hits"] == hits + 1


def test_postgresql_out_of_disk_still_reads(serve, start, origin):
    server = serve(Postgres)
    with small_disk(server.folder / "disk", "1m") as disk:
        server.keep_tables_in(disk)
        daemon = start(origin, settings=server.settings() + ALONE + BREAKERS)
        with Trainer(daemon) as trainer:
            trainer.ask("cold-0").result(60)
            holds(daemon, "postgres", 2)
            fill(disk)
            # More than the pages have room for that are there already.
            for n in range(1, 8):
                rides_through(trainer, f"cold-{n}")
            settled(lambda: tier(daemon, "postgres")["errors"] > 0)
            assert breaker(daemon, "postgres")["opened"] == 0, "what it holds can still be read"
            hits = tier(daemon, "postgres")["hits"]
            forget(daemon, "cold-0")
            trainer.ask("cold-0").result(60)
            assert tier(daemon, "postgres")["hits"] == hits + 1
            (disk / "filler").unlink()
            entries = tier(daemon, "postgres")["entries"]
            trainer.ask("cold-8").result(60)
            holds(daemon, "postgres", entries + 1)
            trainer.steps()


@pytest.mark.parametrize("fault", ["latency", "reset", "truncate", "corrupt", "drip", "hang"])
@pytest.mark.parametrize("kind", SHARED)
def test_a_network_that_breaks_answers_breaks_no_step(serve, start, origin, kind, fault):
    _, daemon, proxy = shared(serve, start, origin, kind, patience="500ms", through=True)
    with proxy, Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        forget(daemon, "cold-0")
        proxy.set(fault, delay=0.02, after=40)
        for n in range(3):
            rides_through(trainer, f"cold-{n}")
        met = tier(daemon, kind.tier)
        assert fault == "latency" or met["errors"] > 0, met
        proxy.set(None)
        # Used again: what is loaded now is kept there once more.
        settled(lambda: loaded_anew(trainer, "cold-3") and tier(daemon, kind.tier)["admissions"] > met["admissions"])
        rides_through(trainer, "cold-0")


def loaded_anew(trainer, kernel):
    """Has a kernel looked up below memory once more."""
    forget(trainer.daemon, kernel)
    trainer.ask(kernel).result(60)
    return True


def test_a_corrupt_copy_in_redis_is_dropped_and_fetched_again(serve, start, origin):
    server, daemon = shared(serve, start, origin, Redis)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, "redis", 2)
        forget(daemon, "cold-0")
        keys = [key for key in server.ask("--raw", "KEYS", "*cold-0*").splitlines()]
        spoiled = [spoil(server, key) for key in keys]
        assert any(spoiled), keys
        trainer.steps()
        fetched = tier(daemon, "directory")["hits"]
        trainer.ask("cold-0").result(60)
        assert tier(daemon, "redis")["corrupt"] == 1
        assert tier(daemon, "directory")["hits"] == fetched + 1
        trainer.steps()


def spoil(server, key):
    """Writes over the largest value of a Redis key; whether there was one."""
    kind = server.ask("TYPE", key)
    if kind == "string":
        server.ask("SETRANGE", key, "200", "spoiled")
    elif kind == "hash":
        fields = server.ask("--raw", "HKEYS", key).splitlines()
        largest = max(fields, key=lambda field: int(server.ask("HSTRLEN", key, field)))
        server.ask("HSET", key, largest, "spoiled")
    return kind in ("string", "hash")


def test_a_corrupt_copy_in_postgresql_is_dropped_and_fetched_again(serve, start, origin):
    server, daemon = shared(serve, start, origin, Postgres)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, "postgres", 2)
        forget(daemon, "cold-0")
        spoils = "UPDATE artifacts SET bytes = set_byte(bytes, 300, 255 - get_byte(bytes, 300)) WHERE id = 'cold-0'"
        command = [binary("psql"), "-h", "127.0.0.1", "-p", str(server.port), "-U", "kasmina", "postgres", "-c", spoils]
        done = subprocess.run(command, env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, text=True)
        assert done.stdout.strip() == "UPDATE 1", done.stderr
        trainer.steps()
        fetched = tier(daemon, "directory")["hits"]
        trainer.ask("cold-0").result(60)
        assert tier(daemon, "postgres")["corrupt"] == 1
        assert tier(daemon, "directory")["hits"] == fetched + 1
        trainer.steps()


# --- the tier on disk ------------------------------------------------------------------------------------------------


def database(daemon):
    return daemon.folder / "state" / "cache.sqlite"


def test_a_corrupt_copy_on_disk_is_dropped_and_fetched_again(start, origin):
    daemon = start(origin, settings=BREAKERS)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, "sqlite", 2)
        forget(daemon, "cold-0")
        with sqlite3.connect(database(daemon)) as connection:
            changed = connection.execute("UPDATE artifacts SET bytes = zeroblob(length(bytes)) WHERE id = 'cold-0'")
            assert changed.rowcount == 1
        trainer.steps()
        fetched = tier(daemon, "directory")["hits"]
        trainer.ask("cold-0").result(60)
        assert tier(daemon, "sqlite")["corrupt"] == 1
        assert tier(daemon, "directory")["hits"] == fetched + 1
        # Fetched again, it is as good as before.
        holds(daemon, "sqlite", 2)
        forget(daemon, "cold-0")
        trainer.ask("cold-0").result(60)
        assert tier(daemon, "sqlite")["corrupt"] == 1
        assert tier(daemon, "directory")["hits"] == fetched + 1
        trainer.steps()


def test_a_locked_database_costs_no_step(start, origin):
    daemon = start(origin, settings='[cache.sqlite]\nbusy_timeout = "200ms"\n' + BREAKERS)
    with Trainer(daemon) as trainer:
        holds(daemon, "sqlite", 1)
        lock = sqlite3.connect(database(daemon), isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        for n in range(4):
            rides_through(trainer, f"cold-{n}")
        settled(lambda: tier(daemon, "sqlite")["errors"] > 0)
        lock.execute("ROLLBACK")
        lock.close()
        rides_through(trainer, "cold-4")
        # Its breaker may still have been open when the kernel would have been written.
        settled(lambda: loaded_anew(trainer, "cold-4") and (tier(daemon, "sqlite")["entries"] or 0) >= 2)


def test_a_full_disk_costs_no_step(start, origin, tmp_path):
    with small_disk(tmp_path / "disk", "400k") as disk:
        daemon = start(origin, settings=f'[cache.sqlite]\npath = "{disk}/cache.sqlite"\n' + BREAKERS)
        with Trainer(daemon) as trainer:
            trainer.ask("cold-0").result(60)
            holds(daemon, "sqlite", 2)
            fill(disk)
            for n in range(1, 5):
                rides_through(trainer, f"cold-{n}")
            settled(lambda: tier(daemon, "sqlite")["errors"] > 0)
            assert breaker(daemon, "sqlite")["opened"] == 0, "what it holds can still be read"
            hits = tier(daemon, "sqlite")["hits"]
            forget(daemon, "cold-0")
            trainer.ask("cold-0").result(60)
            assert tier(daemon, "sqlite")["hits"] == hits + 1
            (disk / "filler").unlink()
            entries = tier(daemon, "sqlite")["entries"]
            rides_through(trainer, "cold-5")
            holds(daemon, "sqlite", entries + 1)
        assert daemon.terminate() == 0


def test_a_daemon_killed_while_it_writes_leaves_a_readable_store(start, origin):
    daemon = start(origin, settings=BREAKERS)
    for round_ in range(3):
        with Trainer(daemon) as trainer:
            before = tier(daemon, "sqlite")["admissions"]
            trainer.client.prefetch([f"cold-{n}" for n in range(4 * round_, 4 * round_ + 4)])
            # The first of four is written: the others are about to be.
            settled(lambda: tier(daemon, "sqlite")["admissions"] > before)
            daemon.kill()
        with sqlite3.connect(database(daemon)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            lost = "SELECT count(*) FROM kernels WHERE id NOT IN (SELECT id FROM artifacts)"
            assert connection.execute(lost).fetchone() == (0,)
        daemon.process = daemon.start()
    with Trainer(daemon) as trainer:
        for n in range(12):
            trainer.ask(f"cold-{n}").result(60)
        assert tier(daemon, "sqlite")["errors"] == 0
        trainer.steps()


# --- the origin ------------------------------------------------------------------------------------------------------


def test_an_origin_that_is_away_at_the_start_is_used_when_it_comes(start, origin):
    daemon = start(origin, settings=BREAKERS)
    with Trainer(daemon) as trainer:
        holds(daemon, "sqlite", 1)
        daemon.terminate()
    away = origin.rename(origin.with_name("away"))
    daemon.process = daemon.start()
    # What is on disk is served without the origin.
    with Trainer(daemon) as trainer:
        with pytest.raises(kasmina.KasminaError):
            trainer.ask("cold-0").result(60)
        trainer.steps()
        away.rename(origin)

        settled(lambda: comes(trainer, "cold-1"))
        trainer.steps()


def test_an_old_copy_serves_while_the_origin_is_away(start, origin):
    daemon = start(origin, settings='[cache]\nfresh_for = "1ms"\n' + BREAKERS)
    with Trainer(daemon) as trainer:
        trainer.ask("cold-0").result(60)
        holds(daemon, "sqlite", 2)
        away = origin.rename(origin.with_name("away"))
        forget(daemon, "cold-0")
        trainer.ask("cold-0").result(60)
        with daemon.operator() as operator:
            assert operator.cache()["stale"] == 1
            assert operator.why("cold-0")["loads"][0]["stale"]
        trainer.steps()
        shutil.copy(away / "attention.pt2", away / "cold-0.pt2")
        away.rename(origin)
        # What the origin has now comes with the next load.
        forget(daemon, "cold-0")
        settled(lambda: comes(trainer, "cold-0"))
        with daemon.operator() as operator:
            held = next(each["digest"] for each in operator.cache()["kernels"] if each["kernel"] == "cold-0")
        assert held == hashlib.sha256((origin / "cold-0.pt2").read_bytes()).hexdigest()
        trainer.steps()


@pytest.fixture
def urza(serve, start, origin):
    """Urza with its blobs behind a proxy, and how to start a daemon on it."""
    server = serve(lambda: Urza(origin))
    with Proxy(("127.0.0.1", server.port)) as proxy:

        def begin(timeout="500ms"):
            return start(origin, settings=ALONE + BREAKERS + QUICK, origin=server.settings(proxy.port, timeout))

        yield server, proxy, begin


def test_urza_that_is_down_at_the_start_is_used_when_it_comes(urza):
    server, _, begin = urza
    server.kill()
    daemon = begin()
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="early", seeds=1)
        with pytest.raises(kasmina.OriginError):
            layer.seeds[0].graft("mlp", input_shape=TOKENS[1:])
        assert layer(torch.randn(TOKENS)).isfinite().all()
    server.start()
    settled(lambda: had(daemon, "mlp"))
    with Trainer(daemon) as trainer:
        rides_through(trainer, "cold-0")


def had(daemon, kernel):
    try:
        graft_elsewhere(daemon, kernel)
    except kasmina.OriginError:
        return False
    return True


def test_urza_that_is_down_for_long_is_not_asked_and_comes_back(urza):
    server, _, begin = urza
    daemon = begin()
    with Trainer(daemon) as trainer:
        server.kill()
        for n in range(4):
            rides_through(trainer, f"cold-{n}")
        opened = [each for each in daemon.status()["breakers"] if each["opened"]]
        assert opened and all(each["last_failure"] for each in opened), daemon.status()["breakers"]
        server.start()
        settled(lambda: comes(trainer, "cold-5"))
        trainer.steps()


def test_urza_that_comes_and_goes_stops_no_step(urza):
    server, _, begin = urza
    daemon = begin()
    with Trainer(daemon) as trainer:
        for n in range(4):
            server.kill()
            rides_through(trainer, f"cold-{n}")
            server.start()
            rides_through(trainer, f"cold-{n + 4}")
        settled(lambda: comes(trainer, "cold-9"))


def test_no_step_waits_for_an_urza_that_hangs(urza):
    _, proxy, begin = urza
    daemon = begin(timeout="60s")
    with Trainer(daemon) as trainer:
        proxy.set("hang")
        asked = trainer.ask("cold-0")
        assert proxy.hanging.wait(20)
        trainer.steps(50)
        assert not asked.done(), "the catalogue's answer is held back, and fifty steps went by"
        proxy.set(None)
        asked.result(60)
        rides_through(trainer, "cold-1")


@pytest.mark.parametrize("fault", ["latency", "reset", "truncate", "error", "corrupt", "drip", "hang", "refuse"])
def test_an_urza_that_answers_badly_stops_no_step(urza, fault):
    _, proxy, begin = urza
    daemon = begin()
    with Trainer(daemon) as trainer:
        proxy.set(fault, delay=0.02, after=600)
        for n in range(3):
            asked = trainer.ask(f"cold-{n}")
            trainer.steps()
            # Late is no error; whatever else is wrong has a code, and none of it is a kernel that runs.
            error = asked.exception(60)
            assert error is None if fault == "latency" else isinstance(error, kasmina.KasminaError), error
        graft_elsewhere(daemon, "mlp")
        proxy.set(None)
        settled(lambda: comes(trainer, "cold-5"))
        rides_through(trainer, "cold-6")


def test_sixty_four_requests_for_one_cold_kernel_fetch_it_once(start, origin):
    daemon = start(origin, settings="[limits]\nmax_sessions = 100\nmax_sessions_per_uid = 100\n" + BREAKERS)
    with Trainer(daemon) as trainer, concurrent.futures.ThreadPoolExecutor(64) as threads:
        with daemon.operator() as operator:
            before = operator.cache()["tiers"][-1]["hits"]
        asked = [threads.submit(graft_elsewhere, daemon, "cold-0") for _ in range(64)]
        trainer.steps()
        for each in asked:
            each.result(120)
        with daemon.operator() as operator:
            assert operator.cache()["tiers"][-1]["hits"] == before + 1
        trainer.steps()


def test_a_killed_daemon_ends_no_training(start, origin):
    daemon = start(origin, settings=BREAKERS)
    with Trainer(daemon) as trainer:
        trainer.steps(3)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait(20)
        with pytest.warns(RuntimeWarning, match="goes on without"):
            for _ in range(5):
                trainer.layer(torch.randn(TOKENS)).sum().backward()
        assert not trainer.layer.connected
