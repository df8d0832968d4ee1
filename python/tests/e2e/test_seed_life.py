"""The life of a seed: blending by schedules, holding, fossils, embargoes, recovery, and the events of it all."""

import contextlib
import json
import math
import os
import subprocess
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import kasmina.torch
from kasmina import Schedule
from .conftest import BINARY, on_disk, settled
from .modules import TOKENS, twin

QUICK = '[engine]\nrecovery_backoff = "200ms"\n'


def make(client, seeds=1, **options):
    return kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=seeds, input_shape=TOKENS[1:], **options)


def formula(kind, start, target, steps, k):
    """The blend factor with k steps done, written out from the documentation."""
    p = k / steps
    if kind == "constant" or k >= steps:
        return target
    logistic = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    part = {
        "linear": p,
        "cosine": (1 - math.cos(math.pi * p)) / 2,
        "sigmoid": (logistic(12 * (p - 0.5)) - logistic(-6)) / (logistic(6) - logistic(-6)),
    }[kind]
    return start + (target - start) * part


def train(layer, x=None):
    """One training step's passes, and the layer's output."""
    x = torch.randn(TOKENS) if x is None else x
    y = layer(x)
    y.sum().backward()
    return y.detach()


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "sigmoid"])
def test_every_pass_runs_with_the_alpha_of_the_formula(client, kind):
    layer = make(client)
    seed, module = layer.seeds[0], twin("mlp")
    seed.graft("mlp", alpha=0.125, schedule=Schedule(kind, 7, target=0.75))
    assert seed.state == "blending"
    for k in range(10):
        x = torch.randn(TOKENS, requires_grad=True)
        alpha = formula(kind, 0.125, 0.75, 7, k)
        assert seed.alpha == pytest.approx(alpha, abs=1e-6), k
        with torch.no_grad():
            truth = (1 - alpha) * layer.host(x) + alpha * module(x)
        layer.eval()
        assert torch.allclose(layer(x), truth, rtol=1e-4, atol=1e-5), "a pass in eval runs with it and is no step"
        layer.train()
        y = layer(x)
        assert torch.allclose(y, truth, rtol=1e-4, atol=1e-5), k
        # The same composition, differentiated by PyTorch.
        theirs = x.detach().requires_grad_()
        ((1 - alpha) * layer.host(theirs) + alpha * module(theirs)).square().sum().backward()
        y.square().sum().backward()
        assert torch.allclose(x.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    settled(lambda: seed.state == "holding")
    assert seed.alpha == 0.75 and layer._moving == []
    series = seed.series(after=2)
    assert series["step"] == list(range(3, 11))
    assert series["alpha"] == pytest.approx([formula(kind, 0.125, 0.75, 7, k) for k in range(2, 10)], abs=1e-6)
    assert all(us > 0 for us in series["latency_us"])


@pytest.mark.parametrize("names, dtype", [(("mlp", "attention"), torch.float32), (("mlp-bfloat16",), torch.bfloat16)])
def test_the_series_has_the_norms_that_pytorch_gives(start, names, dtype):
    daemon = start(settings="[engine]\ngradient_norm_every = 2\nseries_length = 6\n")
    with daemon.connect() as client:
        layer = make(client, seeds=len(names), dtype=dtype).to(dtype)
        modules = [twin(name.removesuffix("-bfloat16")).to(dtype) for name in names]
        # The second learns behind the layer: as if its blend factor were 1.
        factors = (0.5, 1.0)[: len(names)]
        for seed, name, factor in zip(layer.seeds, names, factors):
            seed.graft(name, alpha=factor % 1.0, train=factor == 1.0)
        outputs, gradients = [[] for _ in names], [[] for _ in names]
        for step in range(1, 9):
            x = torch.randn(TOKENS).to(dtype)
            y = layer(x)
            for module, factor, norms, of_gradients in zip(modules, factors, outputs, gradients):
                module.zero_grad()
                out = module(x)
                (out * factor).sum().backward()
                norms.append(float(out.double().norm()))
                of_gradients.append(math.hypot(*(float(p.grad.double().norm()) for p in module.parameters())))
            if step != 6:  # A pass without its backward has no gradient.
                y.sum().backward()
            del y
        rel = 1e-4 if dtype is torch.float32 else 2e-2
        for seed, norms, of_gradients in zip(layer.seeds, outputs, gradients):
            series = seed.series()
            assert series["step"] == [3, 4, 5, 6, 7, 8]
            assert series["output_norm"] == pytest.approx(norms[2:], rel=rel)
            assert [norm is None for norm in series["gradient_norm"]] == [True, False, True, True, True, False]
            assert series["gradient_norm"][1] == pytest.approx(of_gradients[3], rel=rel)
            assert series["gradient_norm"][5] == pytest.approx(of_gradients[7], rel=rel)


def test_a_way_down_ends_with_a_layer_that_is_its_host_alone(client):
    layer = make(client)
    layer.seeds[0].graft("mlp", alpha=0.5)
    layer.seeds[0].blend(Schedule("linear", 2, target=0.0))
    for _ in range(2):
        train(layer)
    x = torch.randn(TOKENS)
    assert torch.equal(layer(x), layer.host(x)) and layer.seeds[0].alpha == 0.0
    before = layer.seeds[0].stats()["executions"]
    train(layer)
    assert layer._quiet and layer.seeds[0].stats()["executions"] == before == 2


def test_another_target_goes_on_from_where_it_is_and_holding_stays(client):
    layer = make(client)
    seed = layer.seeds[0]
    seed.graft("mlp", alpha=0.0)
    seed.blend(Schedule("linear", 4))
    train(layer), train(layer)
    seed.blend(Schedule("cosine", 2, target=0.25))
    assert seed.alpha == 0.5
    train(layer)
    assert seed.alpha == pytest.approx(0.375)
    seed.hold()
    train(layer), train(layer)
    assert seed.alpha == pytest.approx(0.375) and seed.state == "holding"
    seed.hold()  # whether a schedule has just ended nobody can know
    seed.blend(Schedule("linear", 4), alpha=0.0)
    train(layer)
    assert seed.alpha == 0.25
    seed.alpha = 0.75
    train(layer)
    assert seed.alpha == 0.75 and seed.state == "holding"


def test_a_fossil_is_whole_frozen_if_wanted_and_left_alone(client):
    layer = make(client)
    seed, module = layer.seeds[0], twin("mlp")
    seed.graft("mlp", alpha=0.5)
    train(layer)
    before = {name: parameter.clone() for name, parameter in seed.named_parameters()}
    seed.fossilize(freeze=True)
    assert seed.state == "fossilized" and seed.alpha == 1.0
    assert layer.remote.seed_state(0)["frozen"]
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    optimizer.zero_grad()
    x = torch.randn(TOKENS, requires_grad=True)
    y = layer(x)
    assert torch.allclose(y, module(x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    theirs = x.detach().requires_grad_()
    module(theirs).square().sum().backward()
    assert torch.allclose(x.grad, theirs.grad, rtol=1e-3, atol=1e-4), "a frozen kernel still gives x its gradient"
    assert all(parameter.grad is None for parameter in seed.parameters())
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in seed.named_parameters())
    for change, to in (
        (lambda: setattr(seed, "alpha", 0.5), "holding"),
        (lambda: seed.blend(Schedule("linear", 3)), "blending"),
        (lambda: seed.graft("attention", alpha=0.5), "loading"),
        (lambda: seed.hold(), "holding"),
    ):
        with pytest.raises(kasmina.KernelError, match=f"from fossilized to {to}") as caught:
            change()
        assert caught.value.code == "seed.transition"
    assert seed.alpha == 1.0 and seed.kernel == "mlp"
    seed.prune()
    assert seed.state == "dormant"


def test_impossible_steps_name_both_states(client):
    layer = make(client, seeds=2)
    for change, states in (
        (lambda seed: seed.blend(Schedule("linear", 3)), "from dormant to blending"),
        (lambda seed: seed.hold(), "from dormant to holding"),
        (lambda seed: seed.fossilize(), "from dormant to fossilized"),
    ):
        with pytest.raises(kasmina.KernelError, match=states) as caught:
            change(layer.seeds[0])
        assert (caught.value.code, caught.value.seed) == ("seed.transition", 0)
    layer.seeds[1].graft("mlp", alpha=0.0, schedule=Schedule("linear", 3))
    with pytest.raises(kasmina.KernelError, match="from blending to fossilized"):
        layer.seeds[1].fossilize()
    for bad in (("square", 3), ("linear", 0), ("linear", 3, 1.5), ("linear", 3, 1.0, 5.0)):
        with pytest.raises(kasmina.UsageError):
            Schedule(*bad)


def test_a_pruned_kernel_is_refused_for_a_while(start):
    daemon = start(settings='[engine]\nembargo = "1h"\n')
    with daemon.connect() as client:
        layer = make(client, seeds=2)
        seed = layer.seeds[0]
        seed.graft("mlp", alpha=0.5)
        seed.prune(embargo=60)
        with pytest.raises(kasmina.KernelError, match=r"another \d+ ms") as caught:
            seed.graft("mlp", alpha=0.5)
        assert caught.value.code == "seed.embargoed" and caught.value.kernel == "mlp"
        assert seed.state == "dormant"
        seed.graft("attention", alpha=0.5)
        other = layer.seeds[1]
        other.graft("mlp", alpha=0.25)  # it is that seed's alone
        other.prune(embargo=0.05)

        def taken():
            with contextlib.suppress(kasmina.KernelError):
                return other.graft("mlp", alpha=0.5).kernel == "mlp"

        settled(taken)
        other.prune()
        with pytest.raises(kasmina.KernelError, match="embargoed"):
            other.graft("mlp", alpha=0.5)


def poison(seed, name):
    """Makes a kernel give no numbers; what it was."""
    parameter = dict(seed.named_parameters())[name]
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.fill_(float("nan"))
    return parameter, before


def test_a_kernel_that_failed_comes_back_with_the_trainers_parameters(start):
    daemon = start(settings=QUICK)
    with daemon.connect() as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = make(client, seeds=2)
        layer.seeds[0].graft("mlp", alpha=0.25)
        seed = layer.seeds[1]
        seed.graft("attention", alpha=0.0, schedule=Schedule("linear", 8, target=0.5))
        modules = [twin("mlp"), twin("attention")]
        optimizer = torch.optim.SGD(layer.parameters(), 1e-2)
        identities = [id(parameter) for parameter in layer.parameters()]
        for _ in range(3):
            optimizer.zero_grad()
            train(layer)
            optimizer.step()
        settled(lambda: set(on_disk(daemon)) == {"mlp", "attention"})
        held = daemon.descriptors()
        parameter, before = poison(seed, "out.weight")
        with client.events() as own:
            for _ in range(3):
                x = torch.randn(TOKENS)
                assert layer(x).isfinite().all()
            assert until(own, "unloaded")[-1]["error"]["code"] == "kernel.non_finite"
        # Training goes on, with what is left; the trainer mends its parameter where it lies.
        optimizer.zero_grad()
        train(layer)
        optimizer.step()
        with torch.no_grad():
            parameter.copy_(before)

        def back():
            layer(torch.randn(TOKENS))
            return seed.state in ("blending", "holding") and seed.alpha > 0

        settled(back)
        assert [id(parameter) for parameter in layer.parameters()] == identities
        settled(lambda: daemon.descriptors() == held)  # it is the memory file that it had
        # From here on as PyTorch with the trainer's own parameters: those that are mapped are those that run.
        seed.alpha = 0.5
        for module, ours in zip(modules, layer.seeds):
            module.load_state_dict(ours.state_dict())
        optimizers = [optimizer, torch.optim.SGD([p for m in modules for p in m.parameters()], 1e-2)]
        for _ in range(3):
            x = torch.randn(TOKENS)
            for each in optimizers:
                each.zero_grad()
            y = layer(x)
            truth = 0.25 * layer.host(x).detach() + 0.25 * modules[0](x) + 0.5 * modules[1](x)
            assert torch.allclose(y, truth, rtol=1e-4, atol=1e-5)
            y.square().sum().backward()
            truth.square().sum().backward()
            for each in optimizers:
                each.step()
        for module, ours in zip(modules, layer.seeds):
            mine = dict(ours.named_parameters())
            for name, parameter in module.named_parameters():
                assert torch.allclose(mine[name], parameter, rtol=1e-3, atol=1e-5), name
    assert "panicked" not in daemon.text()


def test_a_kernel_that_fails_again_and_again_is_given_up(start):
    daemon = start(settings=QUICK + "recovery_attempts = 1\n")
    with daemon.connect() as client:
        layer = make(client)
        seed = layer.seeds[0]
        seed.graft("mlp", alpha=0.5)
        poison(seed, "up.weight")
        with pytest.warns(kasmina.SeedFailureWarning):
            deadline = time.monotonic() + 20
            while layer.remote.seed_state(0)["state"] != "dormant":
                x = torch.randn(TOKENS)
                assert torch.allclose(layer(x), layer.host(x), rtol=1e-5, atol=1e-6)
                assert time.monotonic() < deadline
            settled(lambda: layer(x) is not None and not layer._live)
        assert seed.last_error()["code"] == "kernel.non_finite" and seed.alpha == 0.0
        assert seed.kernel == "mlp", "its parameters are the trainer's still"
        seed.graft("mlp", alpha=0.5)
        assert torch.allclose(layer(x), 0.5 * layer.host(x) + 0.5 * twin("mlp")(x), rtol=1e-4, atol=1e-5)


def kinds(events):
    return [
        f'{event["from"]} {event["to"]}' if event["event"] == "state_changed" else event["event"] for event in events
    ]


def until(watcher, wanted):
    """The events up to one of a kind."""
    got = []
    while not got or kinds(got)[-1] != wanted:
        event = watcher.next(timeout=20)
        assert event is not None, kinds(got)
        got.append(event)
    return got


def test_watchers_see_what_happens_in_order(start):
    daemon = start(settings=QUICK)
    everything = kasmina.watch(str(daemon.control))
    tool = str(BINARY.with_name("kasmina"))
    command = [tool, "events", "--control-socket", str(daemon.control)]
    printed = [subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) for more in ([], ["--json"])]
    settled(lambda: daemon.status()["events"]["watchers"] == 3)
    mine = kasmina.watch(str(daemon.socket))
    with daemon.connect() as client, client.events() as own, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = daemon.connect()
        layer = make(client)
        seed = layer.seeds[0]
        seed.graft("mlp", alpha=0.0)
        seed.blend(Schedule("linear", 2, target=0.5))
        shown = subprocess.run([tool, "seeds", "--control-socket", str(daemon.control)], capture_output=True, text=True)
        assert "blending" in shown.stdout and "0.000 -> 0.500 in 2" in shown.stdout, shown
        train(layer), train(layer)
        settled(lambda: seed.state == "holding")
        seed.graft("attention", alpha=0.5)
        parameter, before = poison(seed, "out.weight")
        for _ in range(3):
            layer(torch.randn(TOKENS))
        with torch.no_grad():
            parameter.copy_(before)
        got = until(own, "recovered")
        seed.fossilize()
        seed.prune(embargo=5)
        layer.remote.close()
        client.prefetch([])  # takes the closing with it
        wanted = [
            "layer_opened", "dormant loading", "loading holding", "holding blending", "alpha_reached",
            "blending holding", "kernel_swapped", "pass_failed", "unloaded", "holding error_recovery",
            "error_recovery loading", "loading holding", "recovered", "holding fossilized", "fossilized",
            "fossilized pruned", "pruned", "pruned dormant", "embargoed", "layer_closed",
        ]
        got += until(own, "layer_closed")
        assert kinds(got) == wanted
        assert all(event["session"] == client.session for event in got)
        by = {kind: event for kind, event in zip(kinds(got), got)}
        reached = by["alpha_reached"]
        assert (reached["layer_name"], reached["seed"], reached["kernel"], reached["alpha"]) == ("layer", 0, "mlp", 0.5)
        assert by["kernel_swapped"]["before"] == "mlp" and by["kernel_swapped"]["kernel"] == "attention"
        assert by["unloaded"]["error"]["code"] == "kernel.non_finite" and by["recovered"]["attempt"] == 1
        assert by["embargoed"]["embargo_ms"] == 5000 and by["embargoed"]["kernel"] == "attention"
        assert abs(by["pruned"]["unix_ms"] / 1000 - time.time()) < 60
        assert by["holding error_recovery"]["reason"]
        session, stranger = client.session, other.session
        other.close()
    for watcher in (everything, mine):
        got = until(watcher, "session_closed") + until(watcher, "session_closed")
        numbers = [event["sequence"] for event in got]
        assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
        assert kinds(event for event in got if event["session"] == session) == ["session_opened", *wanted, "session_closed"]
        watcher.close()
        assert list(watcher) == []
    lines = [process.stdout.readline() for process in printed for _ in range(3)]
    assert lines[:3] == [
        f"1  {session}  session opened by kasmina-python/{kasmina.__version__}, pid {os.getpid()}\n",
        f"2  {stranger}  session opened by kasmina-python/{kasmina.__version__}, pid {os.getpid()}\n",
        f"3  {session}/1  layer  layer opened with 1 seeds\n",
    ]
    assert [json.loads(line)["event"] for line in lines[3:]] == ["session_opened", "session_opened", "layer_opened"]
    for process in printed:
        process.kill()
        process.wait(20)
        process.stdout.close()
    # A thread that waits is let go by close.
    waiting = kasmina.watch(str(daemon.socket))
    thread = threading.Thread(target=lambda: list(waiting))
    thread.start()
    waiting.close()
    thread.join(20)
    assert not thread.is_alive()
    settled(lambda: daemon.status()["events"]["watchers"] == 0)
    report = daemon.status()["events"]
    assert {"from": "loading", "to": "holding", "count": 2} in report["transitions"] and report["lost"] == 0
    assert daemon.status()["sessions"] == [], "whoever watches is no session"


def test_a_watcher_that_says_more_is_cut_off_and_the_daemon_serves_on(daemon):
    with kasmina.watch(str(daemon.control)) as watcher:
        watcher._socket.sendall(b"\x02\x00\x00\x00\x01\x00\x00\x00{}")
        with pytest.raises(kasmina.SessionError):
            list(watcher)
    with daemon.operator() as operator:
        operator.status()
        with pytest.raises(kasmina.SessionError):
            operator.ask("watch")
    with daemon.connect() as client, pytest.raises(kasmina.SessionError):
        client.request("watch", session=None)


def test_a_whole_life_comes_back_with_the_daemon(daemon):
    with daemon.connect() as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = make(client, seeds=3)
        blending, fossil, held = layer.seeds
        blending.graft("mlp", alpha=0.0, schedule=Schedule("cosine", 10, target=0.5))
        fossil.graft("attention", alpha=0.25)
        fossil.fossilize(freeze=True)
        held.graft("drop", alpha=0.125)
        for _ in range(4):
            train(layer)
        before = blending.alpha
        assert before == pytest.approx(formula("cosine", 0.0, 0.5, 10, 4), abs=1e-6)
        daemon.kill()
        x = torch.randn(TOKENS)
        settled(lambda: torch.equal(layer(x), layer.host(x)))
        daemon.process = daemon.start()

        def there():
            with torch.no_grad():
                layer.eval()
                layer(x)
                layer.train()
            return layer.connected and all(seed.present for seed in layer.seeds)

        settled(there)
        assert blending.alpha == pytest.approx(before, abs=1e-6) and blending.state == "blending"
        for k in range(5, 12):
            train(layer)
            assert blending.alpha == pytest.approx(formula("cosine", 0.0, 0.5, 10, k), abs=1e-6)
        assert fossil.state == "fossilized" and fossil.alpha == 1.0 and not any(p.requires_grad for p in fossil.parameters())
        assert (held.state, held.alpha) == ("holding", 0.125)


def test_a_checkpoint_holds_the_way_and_the_fossil(client):
    layer = make(client, seeds=2)
    layer.seeds[0].graft("mlp", alpha=0.0, schedule=Schedule("sigmoid", 6, target=0.5, steepness=8.0))
    layer.seeds[1].graft("attention", alpha=0.5)
    layer.seeds[1].fossilize(freeze=True)
    train(layer), train(layer)
    saved = layer.state_dict()
    other = make(client, seeds=2)
    other.load_state_dict(saved)
    assert [seed.state for seed in other.seeds] == ["blending", "fossilized"]
    assert not any(parameter.requires_grad for parameter in other.seeds[1].parameters())
    for _ in range(5):
        assert other.seeds[0].alpha == pytest.approx(layer.seeds[0].alpha, abs=1e-6)
        x = torch.randn(TOKENS)
        assert torch.allclose(train(layer, x), train(other, x), rtol=1e-4, atol=1e-5)
    other.load_state_dict(saved)
    assert other.seeds[0].state == "blending" and other.seeds[1].state == "fossilized"


def test_arrays_have_the_same_life(client):
    layer = client.open_layer("arrays", seeds=1)
    grafted = layer.graft(0, "mlp", 0.0, TOKENS[1:], schedule=Schedule("linear", 4))
    x = np.random.default_rng(1).standard_normal(TOKENS).astype(np.float32)
    totals = [layer.forward(x, train=True).alpha_total for _ in range(3)]
    assert totals == [0.0, 0.25, 0.5]
    state = layer.seed_state(0)
    assert (state["state"], state["alpha"], state["target"], state["steps_left"]) == ("blending", 0.75, 1.0, 1)
    assert layer.hold(0)["alpha"] == 0.75
    assert layer.fossilize(0, freeze=True) == {
        "state": "fossilized", "alpha": 1.0, "kernel": "mlp", "generation": grafted.generation,
        "target": None, "steps_left": 0, "frozen": True,
    }
    assert layer.prune(0, embargo=60)["state"] == "dormant"
    with pytest.raises(kasmina.KernelError, match="embargoed"):
        layer.graft(0, "mlp", 0.5, TOKENS[1:])


def test_a_kernel_that_learned_behind_its_layer_is_blended_from_0(client):
    layer = client.open_layer("behind", seeds=1, blend="residual")
    layer.graft(0, "mlp", 0.5, TOKENS[1:], role="train")
    x = np.random.default_rng(1).standard_normal(TOKENS).astype(np.float32)
    passed = layer.forward(x, train=True, gradients=True)
    assert layer.seed_state(0)["state"] == "training" and passed.live == [0]
    assert passed.alpha_total == 0.0 and not passed.output.any(), "the output is the same without it"
    gradients = passed.backward(np.ones(TOKENS, np.float32))
    assert all(gradient.any() for gradient in gradients.parameters[0].values()) and not gradients.input.any()
    with pytest.raises(kasmina.KernelError, match="from training to holding"):
        layer.hold(0)
    with pytest.raises(kasmina.KernelError, match="from training to fossilized"):
        layer.fossilize(0)
    assert layer.blend_by(0, Schedule("linear", 2))["alpha"] == 0.0
    given = [layer.forward(x, train=True, alphas=[alpha]).alpha_total for alpha in (1.0, 0.75)]
    assert given == [1.0, 0.75], "a pass with an alpha of the trainer's own is no step"
    totals = [layer.forward(x, train=True, alphas=[float("nan")]).alpha_total for _ in range(3)]
    assert totals == [0.0, 0.5, 1.0]
    settled(lambda: layer.seed_state(0)["state"] == "holding")
    # It ran in the first by its role, in the next two with the trainer's alphas, and not at all with 0.
    series = layer.series(0)
    assert (series["step"], series["alpha"]) == ([1, 2, 3, 5, 6], [0.5, 1.0, 0.75, 0.5, 1.0])
    assert {len(column) for column in series.values()} == {5}
    with pytest.raises(kasmina.KernelError, match="from holding to training"):
        layer.graft(0, "attention", 0.0, TOKENS[1:], role="train")
