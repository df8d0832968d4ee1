"""Training through the daemon stays beside the same training in this process."""

import pytest
import torch
from torch import nn

import kasmina.torch
from .modules import TOKENS, twin


def layer_with(client, **kernels):
    torch.manual_seed(3)
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=2)
    for seed, (kernel, alpha) in zip(layer.seeds, kernels.items()):
        seed.graft(kernel, alpha=alpha, input_shape=TOKENS[1:])
    return layer


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), lambda p: torch.optim.AdamW(p, 1e-2)],
    ids=["sgd", "adamw"],
)
def test_twenty_steps_stay_equal(client, optimizer):
    ours = layer_with(client, attention=0.4, mlp=0.3)
    torch.manual_seed(3)
    host, first, second = nn.Linear(8, 8), twin("attention"), twin("mlp")
    theirs = nn.ModuleList([host, first, second])
    our_optimizer, their_optimizer = optimizer(ours.parameters()), optimizer(theirs.parameters())
    for step in range(20):
        torch.manual_seed(100 + step)
        x, target = torch.randn(TOKENS), torch.randn(TOKENS)
        losses = []
        for run, step_of in (
            (ours, our_optimizer),
            (lambda v: 0.3 * host(v) + 0.4 * first(v) + 0.3 * second(v), their_optimizer),
        ):
            step_of.zero_grad()
            loss = (run(x) - target).square().mean()
            loss.backward()
            step_of.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), f"step {step}"
    for seed, module in zip(ours.seeds, (first, second)):
        parameters = dict(seed.named_parameters())
        for name, parameter in module.named_parameters():
            error = (parameters[name] - parameter).norm() / parameter.norm().clamp(min=1e-3)
            assert error < 1e-2, f"{name}: {error}"


def test_many_forwards_may_await_their_backward_in_any_order(daemon, client):
    layer = layer_with(client, mlp=0.5)
    module = twin("mlp")
    inputs = [torch.randn(TOKENS, requires_grad=True) for _ in range(8)]
    outputs = [layer(x) for x in inputs]
    assert daemon.status()["sessions"][0]["tickets"] == 8
    for index in (3, 0, 7, 1, 6, 2, 5, 4):
        outputs[index].sum().backward()
        x = inputs[index].detach().requires_grad_()
        (0.5 * layer.host(x) + 0.5 * module(x)).sum().backward()
        assert torch.allclose(inputs[index].grad, x.grad, rtol=1e-3, atol=1e-5)
    assert daemon.status()["sessions"][0]["tickets"] == 0


def test_a_second_backward_is_refused(client):
    layer = layer_with(client, mlp=0.5)
    y = layer(torch.randn(TOKENS, requires_grad=True)).sum()
    # PyTorch is told to keep its graph, so that the refusal is the ticket's own.
    y.backward(retain_graph=True)
    with pytest.raises(kasmina.TicketError) as caught:
        y.backward()
    assert caught.value.code == "ticket.spent"


def test_no_grad_takes_no_ticket_and_dropped_graphs_give_theirs_back(daemon, client):
    layer = layer_with(client, mlp=0.5)
    with torch.no_grad():
        layer(torch.randn(TOKENS))
    assert daemon.status()["sessions"][0]["tickets"] == 0
    y = layer(torch.randn(TOKENS))
    assert daemon.status()["sessions"][0]["tickets"] == 1
    del y
    # A dropped graph's ticket is released with the next submission.
    with torch.no_grad():
        layer(torch.randn(TOKENS))
    assert daemon.status()["sessions"][0]["tickets"] == 0


def test_parameters_are_the_trainers(client):
    layer = layer_with(client, attention=0.5, mlp=0.25)
    names = set(layer.state_dict())
    assert {"host.weight", "seeds.0.qkv.weight", "seeds.0.norm.bias", "seeds.1.up.weight"} <= names
    x = torch.randn(TOKENS)
    before = layer(x).detach()
    with torch.no_grad():
        dict(layer.seeds[1].named_parameters())["down.bias"].add_(1.0)
    after = layer(x).detach()
    assert torch.allclose(after - before, torch.full(TOKENS, 0.25), atol=1e-5)


def test_alpha_state_stats_and_prune(client):
    layer = layer_with(client, mlp=0.25)
    seed = layer.seeds[0]
    assert seed.alpha == 0.25 and seed.state in ("blending", "holding")
    seed.alpha = 0.75
    layer(torch.randn(TOKENS)).sum().backward()
    stats = seed.stats()
    assert stats["executions"] == stats["successes"] == 1 and stats["success_rate"] == 1.0
    assert set(stats["failures"]) == {"deserialize", "shape", "runtime", "timeout", "non_finite"}
    assert stats["synchronous_passes"] + stats["asynchronous_passes"] == 1
    assert 0 < stats["p50_us"] <= stats["p99_us"] and stats["mean_us"] > 0
    with pytest.raises(ValueError):
        seed.alpha = 1.5
    seed.prune()
    assert seed.state == "dormant" and not list(seed.parameters())
    x = torch.randn(TOKENS)
    assert torch.equal(layer(x), layer.host(x))
    assert seed.stats()["executions"] == 1, "a quiet layer does not call the daemon"
