"""Seeds in training, a host in the daemon, alphas of one pass and forwards run again, against PyTorch."""

import numpy as np
import pytest
import torch

import kasmina
from .modules import INPUTS, TOKENS, twin
from .test_equality import close

SHAPE = INPUTS["conv-norm"][1]
NAMES = ("conv-norm", "squeeze", "conv-norm")
HOST = "conv-norm-ts"


def seeds_part(blend, x, factors, outputs):
    """S or P, in plain PyTorch, for T = 0 too."""
    if blend == "multiply":
        product = torch.ones_like(x)
        for a, k in zip(factors, outputs):
            product = product * (1 + a * torch.tanh(k - x))
        return product
    total = sum(factors)
    scale = torch.where(total <= 1, torch.ones(()), 1 / total.clamp(min=1e-9)) if blend == "convex" else 1.0
    return sum(a * scale * k for a, k in zip(factors, outputs))


def with_host(blend, h, part, factors):
    total = sum(factors)
    if blend == "convex":
        return (1 - torch.where(total <= 1, total, torch.ones(()))) * h + part
    return h * part if blend == "multiply" else h + part


def numbers(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def equal(ours, truth, what):
    """Close to the truth, and zeros where that is."""
    ours = numbers(ours)
    if truth.any():
        close(ours.to(truth.dtype), truth, what, 1e-3)
    else:
        assert not ours.any(), what


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("has_host", [False, True], ids=["host in the trainer", "host in the daemon"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "run again"])
@pytest.mark.parametrize("alphas", [(0.3, 0.5), (0.0, 0.0), (0.9, 0.6)])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_layer_with_roles_equals_its_twin(client, blend, has_host, recompute, alphas, train):
    layer = client.open_layer("layer", 3, blend, SHAPE[1:], host=has_host, recompute=recompute)
    for seed, (name, role) in enumerate(zip(NAMES, ("blend", "blend", "train"))):
        layer.graft(seed, name, 0.5, SHAPE[1:], role=role)
    slots = [twin(name).train(train) for name in NAMES]
    if has_host:
        layer.graft(layer.host, HOST, 0.0, SHAPE[1:])
        slots.append(twin(HOST.removesuffix("-ts")).train(train))
    given = [*alphas, float("nan")]

    # Two passes whose backwards come the other way round: buffers have moved on when they are run again.
    torch.manual_seed(4)
    inputs = [torch.randn(SHAPE) for _ in range(2)]
    passes = [layer.forward(x.numpy(), train=train, gradients=True, alphas=given) for x in inputs]
    gradients = torch.randn(SHAPE)
    of_y = gradients if has_host else torch.randn(SHAPE)
    truths = []
    for x in inputs:
        x = x.clone().requires_grad_()
        factors = [torch.tensor(alpha, requires_grad=True) for alpha in alphas]
        output = seeds_part(blend, x, factors, [module(x) for module in slots[:2]])
        if has_host:
            output = with_host(blend, slots[3](x), output, factors)
        loss = (output * gradients).sum()
        if train:
            loss = loss + (slots[2](x.detach()) * of_y).sum()
        parameters = [dict(module.named_parameters()) for module in slots]
        wanted = [x, *factors, *(value for table in parameters for value in table.values())]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        truths.append((output.detach(), wanted, found, parameters))

    ran = [slot for slot in range(len(slots)) if slot != 2 or train]
    for given_pass, (output, wanted, found, parameters) in reversed(list(zip(passes, truths))):
        assert (list(given_pass.live), given_pass.failures) == (ran, {})
        assert given_pass.alpha_total == pytest.approx(sum(alphas))
        equal(given_pass.output, output, "output")
        back = given_pass.backward(gradients.numpy(), straight=None if has_host else of_y.numpy())
        truth = {id(value): gradient for value, gradient in zip(wanted, found)}
        equal(back.input, truth[id(wanted[0])], "input gradient")
        for seed in range(2):
            assert back.alphas[seed] == pytest.approx(truth[id(wanted[1 + seed])].item(), rel=1e-3, abs=1e-3)
        assert back.alphas[2] == 0.0
        for slot in ran:
            for name, value in parameters[slot].items():
                equal(back.parameters[slot][name], truth[id(value)], f"slot {slot} {name}")
    for slot, module in enumerate(slots):
        grafted = layer.grafted[slot]
        ours = {entry.name: grafted.array(entry) for entry in grafted.buffers}
        for name, buffer in module.named_buffers():
            equal(ours[name], buffer.float(), f"slot {slot} {name}")
    layer.close()


def test_dropout_run_again_has_the_same_mask(client):
    results = []
    for recompute in (False, True):
        layer = client.open_layer("layer", 1, "residual", TOKENS[1:], host=True, recompute=recompute)
        layer.graft(0, "drop", 1.0, TOKENS[1:])
        layer.graft(layer.host, "mlp", 0.0, TOKENS[1:])
        torch.manual_seed(5)
        x, g = torch.randn(TOKENS).numpy(), torch.randn(TOKENS).numpy()
        first = layer.forward(x, train=True, gradients=True, rng_seed=11)
        layer.forward(x, train=True, rng_seed=12)
        back = first.backward(g)
        results.append((first.output, back.input, *back.parameters[0].values(), *back.parameters[1].values()))
    for kept, again in zip(*results):
        assert np.array_equal(kept, again)


def test_states_refusals_and_what_a_ticket_holds(daemon, client):
    layer = client.open_layer("layer", 2, "convex", TOKENS[1:], host=True, recompute=True)
    x = torch.randn(TOKENS).numpy()
    with pytest.raises(kasmina.KasminaError) as refused:
        layer.forward(x)
    assert refused.value.code == "layer.no_host"
    layer.graft(layer.host, "mlp", 0.0, TOKENS[1:], role="train")
    layer.graft(0, "attention", 0.0, TOKENS[1:], role="train")
    assert layer.seed_state(0)["state"] == "training"
    assert layer.seed_state(layer.host)["state"] == "holding", "a host does not train behind itself"
    taken = layer.forward(x, train=True, gradients=True)
    assert list(taken.live) == [0, 2]
    assert daemon.status()["sessions"][0]["saved_bytes"] == 0, "neither kernel has a buffer that moves on"
    taken.backward(x)
    # A swap may bring a kernel out of training, and none back.
    layer.graft(0, "mlp", 0.25, TOKENS[1:])
    assert layer.seed_state(0)["state"] == "holding"
    with pytest.raises(kasmina.KasminaError) as refused:
        layer.graft(0, "attention", 0.0, TOKENS[1:], role="train")
    assert refused.value.code == "seed.transition"
    assert (layer.seed_state(0)["kernel"], layer.forward(x).blend_weight) == ("mlp", 0.25)
    # A host has no blend factor that anything could move.
    running = layer.grafted[layer.host]
    for verb, kernel in (("graft", "attention"), ("begin_graft", "attention"), ("blend", None)):
        asked = layer._graft(layer.host, kernel, TOKENS[1:], None, "blend") if kernel else {"seed": layer.host}
        with pytest.raises(kasmina.KasminaError) as refused:
            client.request(verb, layer=layer.number, **asked, schedule=kasmina.Schedule("linear", 4).wire())
        assert refused.value.code == ("seed.schedule" if kernel else "seed.role"), refused.value
        assert "is the host" in str(refused.value) and refused.value.seed == layer.host
    state = layer.seed_state(layer.host)
    assert (state["state"], state["kernel"]) == ("holding", running.kernel) and layer.forward(x).blend_weight == 0.25
    with pytest.raises(kasmina.KasminaError) as refused:
        client.open_layer("wide", 64, host=True)
    assert refused.value.code == "session.quota"
