"""Many trainers on one node: equal numbers, quotas by session and by user, and turns."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .conftest import BINARY, ROOT, settled
from .modules import TOKENS

MIB = 1 << 20


class Trainers:
    """A process with several trainers."""

    def __init__(self, daemon, role, **options):
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        paths = [str(ROOT / "python"), str(ROOT / "python/tests")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "e2e.many", role, "--socket", str(daemon.socket), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def begun(self):
        """Waits until its trainers are under way."""
        assert self.process.stdout.readline() == "flooding\n"
        return self

    def result(self):
        """Ends it, and gives what it has to say."""
        output, _ = self.process.communicate(timeout=300)
        result = json.loads(output.splitlines()[-1])
        assert result["errors"] == [] and self.process.returncode == 0
        return result


def empty(daemon):
    """Whether nobody holds anything any more."""
    status = daemon.status()
    return not status["sessions"] and not status["users"] and status["turns"]["running"] == 0


def test_thirty_two_trainers_of_eight_seeds_train_at_once_as_plain_pytorch_does(start):
    daemon = start(environment={"KASMINA__LIMITS__MAX_SESSIONS_PER_UID": "0"})
    # What the daemon opens when it first loads something stays open.
    with daemon.connect() as client:
        ours = layer(client)
        for seed, kernel in zip(ours.seeds, ("mlp", "attention")):
            seed.graft(kernel, alpha=0.25)
        ours(torch.randn(TOKENS)).sum().backward()
    settled(lambda: empty(daemon))
    descriptors, passes = daemon.descriptors(), daemon.status()["totals"]
    processes = [Trainers(daemon, "train", trainers=8, first=8 * n, steps=5) for n in range(4)]
    seen = {"sessions": 0, "seeds": 0}

    def look():
        # Until one of them is done: then all of its own have come together.
        status = daemon.status()
        seen["sessions"] = max(seen["sessions"], len(status["sessions"]))
        seen["seeds"] = max(seen["seeds"], sum(user["seeds"] for user in status["users"]))
        return any(process.process.poll() is not None for process in processes)

    settled(look, patience=300)
    results = [process.result() for process in processes]
    assert sum(result["passes"] for result in results) == 32 * 2 * 5
    assert seen["sessions"] > 8 and seen["seeds"] > 64, f"several processes at once: {seen}"
    settled(lambda: empty(daemon))
    # The one before may still have had its socket when they were counted.
    settled(lambda: daemon.descriptors() <= descriptors)
    totals = daemon.status()["totals"]
    assert totals["forward_passes"] - passes["forward_passes"] == 32 * 5
    assert totals["compute_us"] > passes["compute_us"] and totals["supply_waits"] == 0
    text = daemon.text()
    assert "panicked" not in text and "a pass of a seed failed" not in text


@pytest.mark.parametrize("places", [1, 2])
def test_a_quiet_user_gets_his_part_beside_a_noisy_one(start, places):
    if os.getuid() != 0:
        print("skipped: only root can be two users")
        pytest.skip("only root can be two users")
    noisy_uid, quiet_uid = 4001, 4002
    daemon = start(
        environment={
            "KASMINA__DAEMON__SOCKET_MODE": "0666",
            "KASMINA__ENGINE__CONCURRENT_PASSES": str(places),
            "KASMINA__DEVICE__THREADS": "1",
        }
    )
    os.chmod(daemon.folder, 0o755)
    noisy = Trainers(daemon, "flood", trainers=8, uid=noisy_uid)
    quiet = Trainers(daemon, "flood", trainers=1, first=8, window=24, uid=quiet_uid)
    noisy.begun(), quiet.begun()

    def computed():
        status = daemon.status()
        by_uid, waited = {noisy_uid: 0, quiet_uid: 0}, 0
        for session in status["sessions"]:
            by_uid[session["uid"]] += session["compute_us"]
            waited += session["turn_wait_us"] if session["uid"] == quiet_uid else 0
        return by_uid, waited, status

    settled(lambda: all(computed()[0].values()))
    before, waited_before, _ = computed()
    # By the daemon's own figures: until both together have used two seconds.
    settled(lambda: sum(computed()[0].values()) - sum(before.values()) > 2_000_000, patience=120)
    after, waited_after, status = computed()
    noise, quietness = (after[uid] - before[uid] for uid in (noisy_uid, quiet_uid))
    share = quietness / (noise + quietness)
    waited = waited_after - waited_before
    # Where his own process comes to nothing he asks for less, and does not wait for it.
    assert share >= 0.4 or waited < quietness, f"{share:.2f}: {noise} and {quietness} us, {waited} us waited"
    assert share <= 0.6, f"{share:.2f}: and no more than his part"
    sessions = {session["uid"]: session for session in status["sessions"]}
    assert sessions[noisy_uid]["turn_wait_us"] > 0 and sessions[noisy_uid]["recent"]["waiting_percent"] > 0
    assert status["turns"]["places"] == places
    users = {user["uid"]: user for user in status["users"]}
    assert (users[noisy_uid]["sessions"], users[quiet_uid]["sessions"]) == (8, 1)
    assert noisy.result()["passes"] > 0 and quiet.result()["passes"] > 0
    settled(lambda: empty(daemon))


def refused(key, limit):
    return pytest.raises(kasmina.KasminaError, match=rf"{key} is {limit}\b")


def layer(client, name="layer", seeds=4, **options):
    return kasmina.torch.SeededLayer(
        nn.Linear(8, 8), client, name, seeds, "residual", TOKENS[1:], **options
    )


def retried(action):
    """Does what was refused, as soon as what stood in its way is gone."""
    done = []

    def attempt():
        try:
            done.append(action())
        except kasmina.KasminaError as error:
            assert error.code == "session.quota"
        return done

    settled(attempt)
    return done[0]


def limited(start, **limits):
    return start(environment={f"KASMINA__LIMITS__{name.upper()}": str(value) for name, value in limits.items()})


def test_sessions_of_a_user_are_bounded(start):
    daemon = limited(start, max_sessions_per_uid=2)
    first, second = daemon.connect(), daemon.connect()
    with refused("limits.max_sessions_per_uid", 2) as caught:
        daemon.connect()
    assert caught.value.code == "session.quota"
    first.close()
    third = retried(daemon.connect)
    layer(third)
    second.close(), third.close()
    settled(lambda: empty(daemon))

    daemon = limited(start, max_sessions=1)
    only = daemon.connect()
    with refused("limits.max_sessions", 1):
        daemon.connect()
    only.close()
    retried(daemon.connect).close()


def test_layers_are_bounded(start):
    daemon = limited(start, max_layers_per_session=2, max_layers_per_uid=3)
    with daemon.connect() as one, daemon.connect() as other:
        held = [layer(one, f"layer-{n}") for n in range(2)]
        with refused("limits.max_layers_per_session", 2) as caught:
            layer(one)
        assert caught.value.code == "session.quota"
        kept = [layer(other)]
        with refused("limits.max_layers_per_uid", 3):
            kept.append(layer(other))
        held.pop().remote.close()
        kept.append(retried(lambda: layer(other)))
        assert daemon.status()["users"] == [
            {"uid": os.getuid(), "sessions": 2, "layers": 3, "seeds": 0, "tickets": 0, "bytes": 0}
        ]
    settled(lambda: empty(daemon))


def test_seeds_are_bounded(start):
    daemon = limited(start, max_seeds_per_session=2, max_seeds_per_uid=3)
    with daemon.connect() as one, daemon.connect() as other:
        first, second = layer(one), layer(other)
        for seed in first.seeds[:2]:
            seed.graft("mlp", alpha=0.25)
        with refused("limits.max_seeds_per_session", 2) as caught:
            first.seeds[2].graft("mlp", alpha=0.25)
        assert caught.value.code == "session.quota" and caught.value.seed == 2
        second.seeds[0].graft("mlp", alpha=0.25)
        with refused("limits.max_seeds_per_uid", 3):
            second.seeds[1].graft("mlp", alpha=0.25)
        # What runs goes on, and a seed that is pruned makes room for another user's session.
        assert first(torch.randn(TOKENS)).isfinite().all()
        first.seeds[0].prune()
        retried(lambda: second.seeds[1].graft("mlp", alpha=0.25))
    settled(lambda: empty(daemon))


def test_tickets_of_a_user_are_bounded(start):
    daemon = limited(start, max_tickets_per_uid=3)
    with daemon.connect() as one, daemon.connect() as other:
        first, second = layer(one), layer(other)
        for each in (first, second):
            each.seeds[0].graft("mlp", alpha=0.25)
        held = [each(torch.randn(TOKENS)) for each in (first, second, first)]
        with refused("limits.max_tickets_per_uid", 3) as caught:
            second(torch.randn(TOKENS))
        assert caught.value.code == "session.quota"
        with torch.no_grad():
            second(torch.randn(TOKENS))
        held.pop().sum().backward()
        second(torch.randn(TOKENS)).sum().backward()
        for y in held:
            y.sum().backward()
        assert daemon.status()["users"][0]["tickets"] == 0


@pytest.mark.parametrize("key", ["max_bytes_per_session", "max_bytes_per_uid"])
def test_bytes_of_parameters_and_of_tickets_are_one_budget(start, key):
    daemon = limited(start, **{key: "1MiB"})
    with daemon.connect() as client:
        ours = layer(client)
        ours.seeds[0].graft("mlp", alpha=0.25)
        held = daemon.status()["sessions"][0]["held_bytes"]
        assert held > 0 and daemon.status()["users"][0]["bytes"] == held
        small = ours(torch.randn(TOKENS, requires_grad=True))
        session = daemon.status()["sessions"][0]
        assert session["held_bytes"] == held + session["saved_bytes"] > held
        with refused(f"limits.{key}", MIB) as caught:
            ours(torch.randn(4096, *TOKENS[1:], requires_grad=True))
        assert caught.value.code == "session.quota"
        assert daemon.status()["sessions"][0]["held_bytes"] == session["held_bytes"], "nothing of it stays"
        small.sum().backward()
        assert daemon.status()["sessions"][0]["held_bytes"] == held
        # Memory files and tickets take from each other: what tickets hold, a graft cannot have.
        taken = []
        for batch in (64, 2):
            with refused(f"limits.{key}", MIB):
                for _ in range(1000):
                    taken.append(ours(torch.randn(batch, *TOKENS[1:], requires_grad=True)))
        with refused(f"limits.{key}", MIB):
            ours.seeds[1].graft("attention", alpha=0.25)
        for y in taken:
            y.sum().backward()
        ours.seeds[1].graft("attention", alpha=0.25)
    settled(lambda: empty(daemon))


def test_top_shows_who_computes(daemon):
    tool = BINARY.with_name("kasmina")
    with daemon.connect() as client:
        ours = layer(client)
        ours.seeds[0].graft("mlp", alpha=0.25)
        for _ in range(3):
            ours(torch.randn(TOKENS)).sum().backward()
        command = [str(tool), "top", "--control-socket", str(daemon.control)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        lines = [line.split() for line in shown.splitlines()]
        assert lines[2] == [
            "SESSION", "UID", "PID", "CLIENT", "LAYERS", "SEEDS", "TICKETS", "HELD", "PASSES/S", "COMPUTE",
            "WAITING", "P50", "P99",
        ]
        assert lines[3][:3] == [str(client.session), str(os.getuid()), str(os.getpid())]
        assert "\x1b" not in shown, "not a terminal"
        told = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=30, check=True).stdout
        session = json.loads(told)["sessions"][0]
        assert session["passes"] == 6 and session["compute_us"] > 0 and session["pass_p99_us"] >= session["pass_p50_us"] > 0
        assert session["recent"]["passes_per_second"] > 0 and session["recent"]["waiting_percent"] == 0
