"""What Prometheus scrapes of a daemon that runs, and what is refused at its start."""

import http.client
import os
import re
import shutil
import signal
import socket
import stat
import subprocess

import pytest
import torch

import kasmina
import kasmina.torch
from .conftest import BINARY, settled
from .faults import ALONE, BREAKERS, QUICK, graft_elsewhere
from .modules import TOKENS
from .servers import Redis, Urza

LISTEN = '[metrics]\nlisten = "127.0.0.1:0"\n'


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def connection(daemon):
    """A connection to where the daemon says that it serves metrics."""
    settled(lambda: "serving metrics" in daemon.text())  # the control socket answers before
    at = re.search(r"serving metrics.* at=\"?([^\s\"]+)", daemon.text()).group(1)
    if at.startswith("unix:"):
        return Unix(at.removeprefix("unix:"))
    return http.client.HTTPConnection(*at.removeprefix("http://").removesuffix("/metrics").rsplit(":", 1), timeout=30)


def page(daemon, path, accept="*/*"):
    """Status and text of an answer."""
    with_connection = connection(daemon)
    try:
        with_connection.request("GET", path, headers={"Accept": accept})
        answer = with_connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        with_connection.close()


def scrape(daemon):
    """Every series with its number."""
    status, text = page(daemon, "/metrics")
    assert status == 200, text
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    series = {name: float(number) for name, number in (line.rsplit(" ", 1) for line in lines)}
    assert len(series) == len(lines), "a series comes twice"
    return series


def promtool(daemon):
    tool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not tool:
        print("skipped: no promtool (Debian has it in the package prometheus)")
        return
    done = subprocess.run([tool, "check", "metrics"], input=page(daemon, "/metrics")[1], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout + done.stderr, done


def states(series, dependency):
    """The states of a breaker that are 1."""
    names = ("closed", "open", "half_open")
    return [s for s in names if series[f'kasmina_breaker_state{{dependency="{dependency}",state="{s}"}}'] == 1]


def test_metrics_tell_of_an_origin_that_is_down(serve, start, origin):
    server = serve(lambda: Urza(origin))
    dependency = f"urza http://127.0.0.1:{server.port}/api/v1"
    patient = BREAKERS.replace("50ms", "1h")
    daemon = start(origin, settings=ALONE + patient + QUICK + LISTEN, origin=server.settings())
    graft_elsewhere(daemon, "mlp")
    before = scrape(daemon)
    assert states(before, dependency) == ["closed"]
    retry_after = f'kasmina_breaker_retry_after_seconds{{dependency="{dependency}"}}'
    refused = f'kasmina_breaker_refused_total{{dependency="{dependency}"}}'
    opened = f'kasmina_breaker_transitions_total{{dependency="{dependency}",to="open"}}'
    assert before[retry_after] == before[refused] == before[opened] == 0
    assert before['kasmina_cache_lookups_total{outcome="found"}'] == 1
    assert before['kasmina_cache_hits_total{tier="urza"}'] == 1
    assert before['kasmina_cache_admissions_total{tier="device"}'] == 1

    server.kill()
    for n in range(2):
        with pytest.raises(kasmina.OriginError):
            graft_elsewhere(daemon, f"cold-{n}")
    down = scrape(daemon)
    assert states(down, dependency) == ["open"]
    assert down[opened] == 1 and down[refused] == 0
    assert 0 < down[retry_after] <= 3600
    with pytest.raises(kasmina.OriginError, match="tried again in"):
        graft_elsewhere(daemon, "cold-2")
    later = scrape(daemon)
    assert later[refused] == 1 and later[opened] == 1
    assert 0 < later[retry_after] <= down[retry_after]
    assert later['kasmina_cache_errors_total{tier="urza"}'] > before['kasmina_cache_errors_total{tier="urza"}']
    # What is in memory is served and counted as ever, and the daemon is ready all the while.
    graft_elsewhere(daemon, "mlp")
    hits = 'kasmina_cache_hits_total{tier="device"}'
    assert scrape(daemon)[hits] == later[hits] + 1
    assert page(daemon, "/readyz") == (200, "ready\n")
    promtool(daemon)


def test_metrics_tell_of_a_breaker_that_closes_again(serve, start, origin):
    server = serve(lambda: Urza(origin))
    dependency = f"urza http://127.0.0.1:{server.port}/api/v1"
    daemon = start(origin, settings=ALONE + BREAKERS + QUICK + LISTEN, origin=server.settings())
    server.kill()
    for n in range(2):
        with pytest.raises(kasmina.OriginError):
            graft_elsewhere(daemon, f"cold-{n}")
    server.start()

    def comes():
        try:
            graft_elsewhere(daemon, "mlp")
        except kasmina.OriginError:
            return False
        return True

    settled(comes)
    series = scrape(daemon)
    assert states(series, dependency) == ["closed"]
    for to in ("open", "half_open", "closed"):
        assert series[f'kasmina_breaker_transitions_total{{dependency="{dependency}",to="{to}"}}'] >= 1
    assert series[f'kasmina_breaker_retry_after_seconds{{dependency="{dependency}"}}'] == 0


def test_a_tier_that_hangs_keeps_no_scrape(serve, start):
    redis = serve(Redis)
    patient = redis.settings().replace("2s", "60s")
    daemon = start(settings=ALONE + patient + LISTEN)
    graft_elsewhere(daemon, "mlp")
    held, errors = 'kasmina_cache_entries{tier="redis"}', 'kasmina_cache_errors_total{tier="redis"}'
    settled(lambda: scrape(daemon)[held] == 1)
    before = scrape(daemon)
    redis.pause()
    during = scrape(daemon)
    assert held not in during and during[errors] == before[errors] == 0, "asked how it does, it has not failed"
    assert during["kasmina_scrape_complete"] == 1 and states(during, "redis") == ["closed"]
    assert during['kasmina_cache_hits_total{tier="device"}'] == before['kasmina_cache_hits_total{tier="device"}']
    redis.resume()
    settled(lambda: scrape(daemon).get(held) == 1)


def test_sessions_and_passes_are_counted_and_outlive_their_session(start):
    daemon = start(settings=LISTEN)
    client = daemon.connect()
    layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="stage2.secret", seeds=2)
    layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
    held = layer(torch.randn(TOKENS, requires_grad=True))
    during = scrape(daemon)
    assert during["kasmina_sessions"] == during["kasmina_layers"] == during["kasmina_live_seeds"] == 1
    assert during["kasmina_tickets"] == 1 and during["kasmina_saved_bytes"] > 0
    held.sum().backward()
    settled(lambda: scrape(daemon)['kasmina_passes_total{direction="backward"}'] == 1)
    text = page(daemon, "/metrics")[1]
    assert "secret" not in text and "mlp" not in text, "labels name neither layers nor kernels"
    client.close()
    settled(lambda: scrape(daemon)["kasmina_sessions"] == 0)
    after = scrape(daemon)
    assert after["kasmina_layers"] == after["kasmina_tickets"] == after["kasmina_saved_bytes"] == 0
    assert after['kasmina_passes_total{direction="forward"}'] == 1
    assert after['kasmina_passes_total{direction="backward"}'] == 1
    assert after["kasmina_sessions_opened_total"] == 1 and after["kasmina_supply_waits_total"] == 0
    status, text = page(daemon, "/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert status == 200 and text.endswith("# EOF\n")


def test_offers_and_plans_that_passes_make_are_counted(start, kernels):
    daemon = start(settings=LISTEN)
    artifact = (kernels / "mlp.pt2").read_bytes()
    with daemon.connect() as client:
        offered = [client.offer(artifact) for _ in range(3)]
        for _ in range(2):
            with pytest.raises(kasmina.KernelError):
                client.offer(b"this is no archive")
        counted = scrape(daemon)
        of = {result: counted[f'kasmina_offers_total{{result="{result}"}}'] for result in ("taken_in", "known", "refused", "failed")}
        assert of == {"taken_in": 1, "known": 2, "refused": 2, "failed": 0}
        layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft(offered[0], alpha=0.5, input_shape=TOKENS[1:])
        assert scrape(daemon)["kasmina_pass_plans_total"] == 0
        for _ in range(3):
            layer(torch.randn(TOKENS))
        planned = scrape(daemon)["kasmina_pass_plans_total"]
        assert planned == 2, "the kernel and its blend, for a shape that the layer had not had"
        layer.seeds[0].graft("mlp", alpha=0.5)
        layer(torch.randn(TOKENS))
        assert scrape(daemon)["kasmina_pass_plans_total"] == planned, "the next was planned before it ran"


def test_a_daemon_that_drains_lives_and_is_not_ready(start, tmp_path):
    folder = tmp_path / "m"
    daemon = start(settings=f'[metrics]\nlisten = "unix:{folder}/metrics.sock"\nsocket_mode = "0600"\n')
    path = folder / "metrics.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert page(daemon, "/readyz") == (200, "ready\n") and page(daemon, "/livez") == (200, "alive\n")
    with daemon.connect() as client:
        layer = kasmina.torch.SeededLayer(torch.nn.Linear(8, 8), client, name="layer", seeds=1)
        layer.seeds[0].graft("mlp", alpha=0.5, input_shape=TOKENS[1:])
        held = layer(torch.randn(TOKENS, requires_grad=True))
        daemon.process.send_signal(signal.SIGTERM)
        settled(lambda: page(daemon, "/readyz") == (503, "draining\n"))
        assert page(daemon, "/livez") == (200, "alive\n")
        assert scrape(daemon)["kasmina_ready"] == 0
        held.sum().backward()
    assert daemon.process.wait(30) == 0
    assert not path.exists()


def test_a_daemon_that_serves_no_metrics_listens_nowhere(daemon):
    assert "serving metrics" not in daemon.text()


def refused(folder, listen):
    """How a daemon ends that is to listen there."""
    config = folder / "kasmina.toml"
    config.write_text(
        f'[daemon]\nsocket = "{folder}/k.sock"\ncontrol_socket = "{folder}/c.sock"\nstate_dir = "{folder}/state"\n'
        f'[origin]\npath = "{folder}"\n[metrics]\nlisten = "{listen}"\n'
    )
    return subprocess.run([str(BINARY), "--config", str(config)], capture_output=True, text=True, timeout=60)


def test_an_address_that_is_taken_ends_the_start_by_its_key(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = refused(tmp_path, address)
    assert done.returncode == 1, done
    assert f"metrics.listen: cannot listen on {address}: Address already in use" in done.stderr, done.stderr
    path = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        done = refused(tmp_path, f"unix:{path}")
    assert done.returncode == 1 and "another metrics.listen" in done.stderr, done


def test_an_address_that_others_reach_is_refused(tmp_path):
    done = refused(tmp_path, "0.0.0.0:0")
    assert done.returncode == 78 and "metrics.listen: 0.0.0.0:0 can be reached from other machines" in done.stderr, done
