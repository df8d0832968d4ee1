"""Blend factors that an optimizer learns, beside the same parameters in plain PyTorch."""

import copy
import gc
import io

import pytest
import torch
import torch._dynamo
from torch import nn

import kasmina
import kasmina.torch
from .composition import alike, compare, learn, near, pair, pass_of
from .conftest import settled
from .test_equality import close
from .test_torch_roles import ADAMW, SGD


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("host", ["trainer", "daemon"])
@pytest.mark.parametrize("alphas", [(0.2, 0.3), (0.25, 0.75), (0.9, 0.6), (0.0, 0.4), (0.0, 0.0)])
def test_the_gradient_of_a_learnt_alpha_is_exact(client, blend, host, alphas):
    layer, plain, shape = pair(client, ("conv-norm", "squeeze"), blend, host=host)
    for index, alpha in enumerate(alphas):
        learn(layer, plain, index, alpha)
    for train in (True, False):
        layer.train(train), plain.train(train)
        compare(layer, plain, torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_learnt_fixed_and_training_side_by_side(client, recompute):
    names, roles = ("attention", "mlp", "mlp"), ("blend", "blend", "train")
    layer, plain, shape = pair(client, names, "convex", (0.25, 0.0, 0.0), roles, recompute=recompute)
    learn(layer, plain, 1, 0.125)
    for _ in range(3):
        compare(layer, plain, torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
def test_steps_of_optimizers_stay_equal(client, optimizer, blend):
    layer, plain, shape = pair(client, ("attention", "mlp"), blend)
    learn(layer, plain, 0, 0.0), learn(layer, plain, 1, 0.6)
    steps = optimizer(layer.parameters()), optimizer(plain.parameters())
    for _ in range(12):
        batches = [(torch.randn(shape), torch.randn(shape)) for _ in range(2)]
        for model, step in zip((layer, plain), steps):
            step.zero_grad()
            # Several tickets, and gradients that accumulate.
            outputs = [model(x) for x, _ in batches]
            for y, (_, target) in zip(outputs, batches):
                (y - target).square().mean().backward()
            step.step()
            with torch.no_grad():
                # They may leave [0, 1], where the layer clamps them; in plain PyTorch that is for the trainer to do.
                for alpha in (model.alphas.parameters()):
                    alpha.clamp_(0.0, 1.0)
    alike(layer, plain, 2e-3, gradients=False)
    assert all(seed.alpha == seed.alpha_parameter.item() for seed in layer.seeds)


@pytest.mark.parametrize("value, passes", [(-0.25, False), (0.0, True), (1.0, True), (1.25, False)])
def test_a_value_out_of_range_counts_as_the_nearest_and_learns_nothing(client, value, passes):
    layer, plain, shape = pair(client, ("mlp",))
    alpha = learn(layer, plain, 0, min(max(value, 0.0), 1.0))
    with torch.no_grad():
        alpha.fill_(value)
    x = torch.randn(shape)
    y, truth = layer(x), plain(x)
    close(y, truth, "output")
    y.square().sum().backward()
    truth.square().sum().backward()
    if passes:
        near(alpha.grad, plain.alphas["0"].grad, "gradient")
        assert alpha.grad != 0
    else:
        assert alpha.grad == 0
    assert layer.seeds[0].alpha == min(max(value, 0.0), 1.0)


def test_compiled_code_learns_alphas(client):
    for host in ("trainer", "daemon"):
        torch._dynamo.reset()
        layer, plain, shape = pair(client, ("mlp", "attention"), "convex", (0.0, 0.25), host=host)
        learn(layer, plain, 0, 0.5)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            layer.zero_grad(), plain.zero_grad()
            x, gradient = torch.randn(shape), torch.randn(shape)
            (y, grad), (truth, grad_truth) = pass_of(compiled, x, gradient), pass_of(plain, x, gradient)
            close(y, truth, "output")
            near(grad, grad_truth, "input gradient")
            alike(layer, plain)
            with torch.no_grad():
                layer.seeds[0].alpha_parameter.fill_(0.125), plain.alphas["0"].fill_(0.125)
    torch._dynamo.reset()


def test_checkpoints_copies_and_averages(client, start):
    layer, plain, shape = pair(client, ("attention", "mlp"), "residual", (0.25, 0.0))
    learn(layer, plain, 1, 0.375)
    state = layer.state_dict()
    assert state["alphas.1"].item() == 0.375 and "alphas.0" not in state
    held = io.BytesIO()
    torch.save(state, held)
    held.seek(0)
    x = torch.randn(shape)
    with start().connect() as other:
        restored = kasmina.torch.SeededLayer(nn.Linear(8, 8), other, "again", 2, "residual")
        restored.load_state_dict(torch.load(held, weights_only=True))
        close(restored(x), layer(x), "after a checkpoint")
        assert restored.seeds[1].alpha_parameter.item() == 0.375 and restored.seeds[0].alpha_parameter is None
        # What was learnt since is taken back, in the same parameter.
        kept = restored.seeds[1].alpha_parameter
        with torch.no_grad():
            kept.fill_(0.75)
        restored.load_state_dict(state)
        assert restored.seeds[1].alpha_parameter is kept and kept.item() == 0.375
    made = copy.deepcopy(layer)
    close(made(x), layer(x), "a copy")
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    with torch.no_grad():
        layer.seeds[1].alpha_parameter.fill_(0.5)
    averaged.update_parameters(layer), averaged.update_parameters(layer)
    assert averaged.module.seeds[1].alpha_parameter.item() == 0.5


@pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
def test_a_learnt_alpha_comes_back_with_the_daemon(daemon):
    with daemon.connect() as client:
        layer, plain, shape = pair(client, ("mlp",))
        alpha = learn(layer, plain, 0, 0.25)
        compare(layer, plain, torch.randn(shape), torch.randn(shape))
        daemon.kill()
        settled(lambda: not client.connected)
        x = torch.randn(shape)
        assert torch.equal(layer(x), layer.host(x))
        # What an optimizer does meanwhile holds afterwards.
        with torch.no_grad():
            alpha.fill_(0.75), plain.alphas["0"].fill_(0.75)
        daemon.process = daemon.start()
        settled(lambda: layer._arrived)
        compare(layer, plain, torch.randn(shape), torch.randn(shape))
        assert layer.seeds[0].alpha_parameter is alpha and layer.seeds[0].alpha == 0.75


def test_passes_with_learnt_alphas_leave_nothing_behind(daemon, client):
    layer, plain, shape = pair(client, ("mlp",))
    learn(layer, plain, 0, 0.5)
    for _ in range(50):
        layer(torch.randn(shape)).sum().backward()
        layer.submit(torch.randn(shape))
    with torch.no_grad():
        layer(torch.randn(shape))
    layer.zero_grad()
    gc.collect()
    with torch.no_grad():
        layer(torch.randn(shape))
    heap = client.connection._heap
    assert heap.free_bytes == heap.size and daemon.status()["sessions"][0]["tickets"] == 0
