"""A layer's outputs and gradients equal the same modules run in this process."""

import pytest
import torch
from torch import nn

import kasmina.torch
from .modules import HALVES, IMAGE, INPUTS, TOKENS, name_of, twin

TOLERANCE = 1e-4


def close(ours, truth, what, tolerance=TOLERANCE):
    assert ours.dtype == truth.dtype, what
    error = (ours - truth).norm() / truth.norm().clamp(min=1e-6)
    assert error < tolerance, f"{what}: {error}"


def blended(blend, h, x, alphas, outputs):
    """DESIGN's formulas in plain PyTorch."""
    total = sum(alphas)
    if blend == "convex":
        # min(1, T) with its slope from below at T = 1, which is what the daemon documents.
        share = torch.where(total <= 1, total, torch.ones(()))
        return (1 - share) * h + sum(share * a / total * k for a, k in zip(alphas, outputs))
    if blend == "residual":
        return h + sum(a * k for a, k in zip(alphas, outputs))
    for a, k in zip(alphas, outputs):
        h = h * (1 + a * torch.tanh(k - x))
    return h


def host(shape):
    torch.manual_seed(1)
    return nn.Conv2d(6, 6, 3, padding=1) if shape == IMAGE else nn.Linear(8, 8)


def check(client, names, alphas, blend, train):
    shape = INPUTS[names[0].removesuffix("-ts")][1]
    ours = kasmina.torch.SeededLayer(
        host(shape), client, name="layer", seeds=2, blend=blend, alpha_gradients=True
    )
    theirs, twins = host(shape), [twin(name).train(train) for name in names]
    torch.manual_seed(2)
    x = torch.randn(shape, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    ours(x)
    for seed, name, alpha in zip(ours.seeds, names, alphas):
        seed.graft(name, alpha=alpha)
    ours.train(train)
    gradient = torch.randn(shape)

    y = ours(x)
    y.backward(gradient)
    factors = [torch.tensor(alpha, requires_grad=True) for alpha in alphas]
    truth = blended(blend, theirs(x_twin), x_twin, factors, [module(x_twin) for module in twins])
    truth.backward(gradient)

    close(y, truth, "output")
    close(x.grad, x_twin.grad, "input gradient")
    for (name, parameter), other in zip(ours.host.named_parameters(), theirs.parameters()):
        close(parameter.grad, other.grad, f"host {name}")
    for index, (seed, module, factor) in enumerate(zip(ours.seeds, twins, factors)):
        parameters = dict(seed.named_parameters())
        for name, parameter in module.named_parameters():
            close(parameters[name].grad, parameter.grad, f"seed {index} {name}")
        assert seed.alpha_grad == pytest.approx(factor.grad.item(), rel=1e-3, abs=1e-4), f"alpha {index}"
        buffers = dict(seed.named_buffers())
        for name, buffer in module.named_buffers():
            close(buffers[name].float(), buffer.float(), f"seed {index} {name}")


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("alphas", [(0.2, 0.3), (0.25, 0.75), (0.9, 0.6)])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_layer_of_two_seeds_equals_its_twin(client, blend, alphas, train):
    check(client, ("conv-norm", "squeeze"), alphas, blend, train)


@pytest.mark.parametrize("names", [("attention", "mlp"), ("attention-ts", "mlp")])
def test_attention_equals_its_twin(client, names):
    check(client, names, (0.5, 0.25), "convex", True)


def test_torchscript_written_in_eval_mode_trains(client):
    check(client, ("conv-norm-ts", "squeeze"), (0.5, 0.25), "convex", True)


def test_a_batch_of_another_size_needs_no_new_graft(client):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1)
    layer.seeds[0].graft("mlp", alpha=1.0, input_shape=TOKENS[1:])
    module = twin("mlp")
    for batch in (2, 7, 3, 7):
        x = torch.randn(batch, *TOKENS[1:])
        close(layer(x), module(x), f"batch {batch}")


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_a_layer_of_half_precision_equals_its_twin(client, dtype):
    torch.manual_seed(3)
    host = nn.Linear(8, 8, dtype=dtype)
    layer = kasmina.torch.SeededLayer(host, client, name="layer", seeds=1, dtype=dtype)
    seed = layer.seeds[0]
    seed.graft(f"mlp-{name_of(dtype)}", alpha=0.5, input_shape=TOKENS[1:])
    module = twin("mlp").to(dtype)
    x = torch.randn(TOKENS, dtype=dtype, requires_grad=True)
    x_twin = x.detach().clone().requires_grad_()
    gradient = torch.randn(TOKENS, dtype=dtype)
    y = layer(x)
    y.backward(gradient)
    truth = 0.5 * nn.functional.linear(x_twin, host.weight.detach(), host.bias.detach()) + 0.5 * module(x_twin)
    truth.backward(gradient)
    close(y, truth, "output", 2e-2)
    close(x.grad, x_twin.grad, "input gradient", 2e-2)
    parameters = dict(seed.named_parameters())
    for name, parameter in module.named_parameters():
        close(parameters[name].grad, parameter.grad, name, 2e-2)


def test_dropout_draws_from_torch_and_uses_one_mask_both_ways(client):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name="layer", seeds=1, blend="residual")
    layer.seeds[0].graft("drop", alpha=1.0, input_shape=TOKENS[1:])
    x = torch.randn(TOKENS)

    def run(seed):
        torch.manual_seed(seed)
        moved = x.clone().requires_grad_()
        y = layer(moved) - layer.host(moved)
        y.sum().backward()
        return y.detach(), moved.grad

    (first, gradient), (again, _), (other, _) = run(1), run(1), run(2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    kept = first != 0
    assert 0.2 < kept.float().mean() < 0.8
    # y = 2·mask·(Wx + b): with the same mask, the input's gradient is known from where y is not zero.
    weight = dict(layer.seeds[0].named_parameters())["linear.weight"].detach()
    close(gradient, (2.0 * kept.float()) @ weight, "input gradient under the mask")
    layer.eval()
    with torch.no_grad():
        close(layer(x) - layer.host(x), twin("drop").linear(x), "eval leaves nothing out")
