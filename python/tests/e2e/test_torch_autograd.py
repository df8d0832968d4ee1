"""Autograd's corners: what is written to in place, gradients of gradients, what an optimizer did too early."""

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .composition import near, pair
from .modules import IMAGE, TOKENS

BLENDS = ("convex", "residual", "multiply")


def added(y, x):
    y += x
    return y


def indexed(y, x):
    y[0] = 0
    return y


IN_PLACE = {"relu": lambda y, x: nn.ReLU(inplace=True)(y), "add": added, "index": indexed}
APART = {"relu": lambda y, x: torch.relu(y), "add": lambda y, x: y + x, "index": lambda y, x: y * (torch.arange(len(y)) > 0).view(-1, 1, 1)}


def called(layer, x):
    return layer(x)


def submitted(layer, x):
    return layer.submit(x).result()


def compiled(layer, x):
    torch._dynamo.reset()
    return torch.compile(layer, backend="eager")(x)


def gradients(model, x, run, then):
    model.zero_grad()
    x = x.clone().requires_grad_()
    then(run(model, x), x).square().sum().backward()
    return [x.grad, *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("run", (called, submitted, compiled))
@pytest.mark.parametrize("host", ("trainer", "daemon"))
@pytest.mark.parametrize("blend", BLENDS)
def test_y_may_be_written_to_in_place(client, blend, host, run):
    layer, plain, shape = pair(client, ["mlp"], blend, [0.5], host=host)
    x = torch.randn(shape)
    for name, then in IN_PLACE.items():
        truth = gradients(plain, x, called, APART[name])
        for ours, right in zip(gradients(layer, x, run, then), truth):
            near(ours, right, f"{name} behind a {blend} layer")
    with torch.no_grad():
        near(run(layer, x).relu_(), plain(x).relu_(), "without gradients")


def test_a_residual_block_with_an_activation_in_place(client):
    layer, plain, shape = pair(client, ["conv-norm"], "convex", [0.1])
    ours, truth = nn.Sequential(layer, nn.ReLU(inplace=True)), nn.Sequential(plain, nn.ReLU())
    x = torch.randn(IMAGE)
    assert shape == IMAGE
    near(ours(x), truth(x), "output")
    ours(x).sum().backward()


def penalty(model, x):
    """As a gradient penalty is written: the gradient of a sum, whose own gradient requires none."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return ((gradient.norm(dim=-1) - 1) ** 2).mean()


@pytest.mark.parametrize("host", ("trainer", "daemon"))
@pytest.mark.parametrize("blend", BLENDS)
def test_gradients_of_gradients_are_refused(client, blend, host):
    layer, _, shape = pair(client, ["mlp"], blend, [0.5], host=host)
    x = torch.randn(shape)
    with pytest.raises(kasmina.UsageError, match="gradients of gradients are not computed through layer 'layer'"):
        penalty(layer, x).backward()
    # Through a head, where the gradient that comes in requires one itself.
    head = nn.Linear(shape[-1], 1)
    with pytest.raises(kasmina.UsageError, match="gradients of gradients"):
        penalty(nn.Sequential(layer, head), x).backward()
    torch._dynamo.reset()
    with pytest.raises((kasmina.UsageError, RuntimeError), match="gradients of gradients|double backward"):
        penalty(torch.compile(layer, backend="eager"), x).backward()


@pytest.mark.parametrize("blend", BLENDS)
def test_a_graph_of_gradients_that_is_not_used_is_none_the_worse(client, blend):
    layer, plain, shape = pair(client, ["mlp"], blend, [0.5])
    x = torch.randn(shape)
    for model in (plain, layer):
        model(x).square().sum().backward(create_graph=True)
    for ours, right in zip(layer.parameters(), plain.parameters()):
        near(ours.grad.detach(), right.grad.detach(), "gradient")


def test_another_default_type_does_not_round_gradients(client):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5])
    layer.seeds[0].learn_alpha(0.3)
    x = torch.randn(shape)
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer.zero_grad()
        torch.set_default_dtype(dtype)
        try:
            layer(x).sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append(layer.seeds[0].alpha_parameter.grad.clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert TOKENS == shape
