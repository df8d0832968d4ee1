"""An operator's hands on the supply: warm, pin, unpin, clear, evict and why, by the tool and by the client."""

import json
import os
import subprocess

import kasmina
import pytest
import torch
from torch import nn

import kasmina.torch
from .conftest import BINARY, on_disk, settled
from .faults import ALONE
from .modules import TOKENS
from .proxy import Proxy
from .servers import Urza


def tool(daemon, *arguments):
    """Runs ``kasmina`` against the daemon."""
    command = [str(BINARY.with_name("kasmina")), *arguments, "--control-socket", str(daemon.control)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def told(daemon, *arguments):
    done = tool(daemon, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resident(daemon):
    with daemon.operator() as operator:
        return {entry["kernel"]: entry for entry in operator.cache()["kernels"]}


def layered(client, kernel):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="stage2.mlp", seeds=1)
    layer.seeds[0].graft(kernel, alpha=0.5, input_shape=TOKENS[1:])
    return layer


def test_warmed_kernels_are_resident_before_anybody_asks(daemon):
    text = told(daemon, "warm", "mlp", "attention")
    assert "loading 2 kernels" in text, text
    settled(lambda: resident(daemon).keys() == {"mlp", "attention"})
    settled(lambda: daemon.status()["warming"]["loaded"] == 2)
    with daemon.connect() as client:
        assert client.prefetch(["mlp", "attention"]) == 0, "nothing is left to fetch"
        layered(client, "mlp")
    assert daemon.text().count("kernel loaded") == 2
    # A kernel that does not exist is counted, and the others come all the same.
    told(daemon, "warm", "no-such-kernel")
    settled(lambda: daemon.status()["warming"]["failed"] == 1)
    assert "1 failed" in told(daemon, "status")


def test_a_pinned_kernel_stays_until_it_is_let_go(daemon):
    told(daemon, "pin", "mlp")
    assert resident(daemon)["mlp"]["pinned"]
    assert ", pinned" in told(daemon, "why", "mlp")
    refused = tool(daemon, "evict", "mlp")
    assert refused.returncode == 1 and "in use   mlp" in refused.stdout, refused
    told(daemon, "clear")
    assert resident(daemon).keys() == {"mlp"}
    told(daemon, "unpin", "mlp")
    assert "dropped  mlp" in told(daemon, "evict", "mlp")
    assert not resident(daemon)
    absent = tool(daemon, "pin", "no-such-kernel")
    assert absent.returncode == 3 and "no-such-kernel" in absent.stderr, absent
    with daemon.operator() as operator:
        operator.pin("attention")
        assert resident(daemon)["attention"]["pinned"]
        operator.unpin("attention")
        assert not resident(daemon)["attention"]["pinned"]


def test_clear_empties_memory_and_with_tiers_the_disk(daemon):
    with daemon.connect() as client:
        layer = layered(client, "mlp")
        told(daemon, "warm", "attention")
        settled(lambda: "attention" in resident(daemon) and set(on_disk(daemon)) == {"mlp", "attention"})
        cleared = tool(daemon, "clear")
        assert "dropped  attention" in cleared.stdout and "in use   mlp" in cleared.stdout, cleared
        assert set(on_disk(daemon)) == {"mlp", "attention"} and resident(daemon).keys() == {"mlp"}
        tool(daemon, "clear", "--tiers")
        assert set(on_disk(daemon)) == set()
        x = torch.randn(TOKENS)
        assert not torch.equal(layer(x), layer.host(x)), "what a seed uses goes on"


def test_why_tells_where_a_kernel_is_and_came_from(daemon):
    page = told(daemon, "why", "mlp")
    assert "in memory   no" in page and "loads       none" in page and "no copy" in page, page
    with daemon.connect() as client:
        layer = layered(client, "mlp")
        settled(lambda: set(on_disk(daemon)) == {"mlp"})
        page = told(daemon, "why", "mlp")
        for part in ("in memory   ", "of layer stage2.mlp, holding", "sqlite      ", "from directory in ", "validate ", "plan ", "pass        archive.readable"):
            assert part in page, (part, page)
        # The same by the seed's place.
        seeds = json.loads(told(daemon, "seeds", "--json"))["seeds"]
        place = "{session}/{layer}/{seed}".format(**seeds[0])
        report = json.loads(told(daemon, "why", place, "--json"))
        assert report["kernel"] == "mlp" and report["seeds"][0]["layer_name"] == "stage2.mlp"
        assert [copy["tier"] for copy in report["copies"] if copy["bytes"]] == ["sqlite"]
        layer.seeds[0].prune()
    told(daemon, "evict", "mlp")
    page = told(daemon, "why", "mlp")
    assert "eviction    " in page and "in memory   no" in page and f"asked by uid {os.getuid()}" in page, page
    wrong = tool(daemon, "why", "9/9/9")
    assert wrong.returncode == 3 and "9" in wrong.stderr, wrong
    with daemon.connect() as client, pytest.raises(kasmina.KasminaError):
        layered(client, "no-such-kernel")
    assert "not to be had: kernel.not_found" in told(daemon, "why", "no-such-kernel")


def test_a_kernel_in_use_is_not_evicted(daemon):
    with daemon.connect() as client:
        layer = layered(client, "mlp")
        with daemon.operator() as operator:
            report = operator.evict("mlp")
        assert report["in_use"] == ["mlp"] and not report["condemned"], report
        x = torch.randn(TOKENS)
        assert not torch.equal(layer(x), layer.host(x))
        layer.seeds[0].prune()
        assert "mlp" in resident(daemon)
        with daemon.operator() as operator:
            # The ticket of the pass above is given back beside the prune.
            settled(lambda: operator.evict("mlp")["evicted"] == ["mlp"])
        assert "mlp" not in resident(daemon)


def test_a_kernel_weighs_what_passes_of_new_shapes_take(daemon):
    with daemon.connect() as client:
        layer = layered(client, "mlp")
        grafted = resident(daemon)["mlp"]
        layer(torch.randn(64, *TOKENS[1:]))
        settled(lambda: resident(daemon)["mlp"]["bytes"] > grafted["bytes"])
        assert resident(daemon)["mlp"]["plans"] > grafted["plans"] and resident(daemon)["mlp"]["idle_ms"] == 0
        ran = resident(daemon)["mlp"]["bytes"]
        layer.seeds[0].prune()
        # The seed's workspace goes with it, the plans stay.
        settled(lambda: grafted["bytes"] < resident(daemon)["mlp"]["bytes"] < ran)


def test_prefetches_wait_in_a_bounded_row_and_end_with_their_session(start, serve, origin):
    urza = serve(lambda: Urza(origin))
    with Proxy(("127.0.0.1", urza.port)) as proxy:
        daemon = start(origin, settings=ALONE, origin=urza.settings(proxy.port, timeout="60s"))
        proxy.set("hang")

        def under_way():
            with daemon.operator() as operator:
                return operator.cache()["lookups"]["in_flight"]

        with daemon.connect() as client:
            for batch in range(4):
                assert client.prefetch([f"k{batch}-{n}" for n in range(64)]) == 64
            settled(lambda: under_way() == 2)
            with pytest.raises(kasmina.KasminaError) as raised:
                client.prefetch([f"more-{n}" for n in range(3)])
            assert raised.value.code == "session.quota" and "256" in str(raised.value)
            assert client.prefetch(["more-0", "more-1"]) == 2
            assert client.prefetch(["more-0", "k3-63"]) == 0, "they wait already"
            # An operator is heard, and the session grafts nothing less for it.
            assert under_way() == 2
            told(daemon, "why", "k0-0")
        settled(lambda: under_way() == 0)


def test_only_regular_files_are_judged(daemon):
    with daemon.operator() as operator:
        for path in ("/dev/zero", str(daemon.folder)):
            with pytest.raises(kasmina.KasminaError) as raised:
                operator.validate(path)
            assert "no regular file" in str(raised.value)
