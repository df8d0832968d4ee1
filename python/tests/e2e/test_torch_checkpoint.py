"""torch.utils.checkpoint over layers: the forward that a backward repeats is what it was."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import kasmina.torch
from .composition import near, pair

REENTRANT = (False, True)
STEPS = 4


def scheduled(client, **options):
    layer, _, shape = pair(client, ["drop"], "convex", [0.0], **options)
    layer.seeds[0].blend(kasmina.Schedule("linear", STEPS), 0.0)
    return layer, torch.randn(shape)


def trained(layer, x, run):
    """What the seed's alphas and all gradients were, step for step."""
    seen = []
    for step in range(STEPS + 2):
        layer.zero_grad()
        each = x.clone().requires_grad_()
        torch.manual_seed(step)
        run(each).square().sum().backward()
        seen.append([torch.tensor(layer.seeds[0].alpha), each.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
        seen[-1] = [one.clone() for one in seen[-1]]
    return seen


@pytest.mark.parametrize("host", ("trainer", "daemon"))
@pytest.mark.parametrize("reentrant", REENTRANT)
def test_a_schedule_goes_on_once_a_step(client, reentrant, host):
    layer, x = scheduled(client, host=host)
    other = copy.deepcopy(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain, repeated = trained(layer, x, layer), trained(other, x, lambda v: checkpoint(other, v, use_reentrant=reentrant))
    for step, (truth, ours) in enumerate(zip(plain, repeated)):
        for one, right in zip(ours, truth, strict=True):
            near(one, right, f"step {step}")
    assert layer.seeds[0].state == other.seeds[0].state == "holding"


@pytest.mark.parametrize("reentrant", REENTRANT)
def test_several_forwards_before_their_backwards(client, reentrant):
    layer, x = scheduled(client)
    other = copy.deepcopy(layer)
    found = []
    for one, run in ((layer, layer), (other, lambda v: checkpoint(other, v, use_reentrant=reentrant))):
        torch.manual_seed(0)
        each = x.clone().requires_grad_()
        ys = [run(torch.tanh(each)) for _ in range(3)]
        sum(n * y.square().sum() for n, y in enumerate(ys, 1)).backward()
        found.append([each.grad, *(p.grad for p in one.parameters())])
        assert one.seeds[0].alpha == 0.75
    for truth, ours in zip(*found):
        near(ours, truth, "gradient")


def test_a_repetition_that_cannot_be_known_is_warned_of(client):
    layer, x = scheduled(client)
    x.requires_grad_()
    with pytest.warns(UserWarning, match="recompute=True"):
        checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False).sum().backward()
    assert isinstance(layer, nn.Module)
