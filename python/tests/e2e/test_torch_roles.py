"""Seeds that learn behind their layer: the output is the host's, the gradients those of a blend factor of 1."""

import asyncio
import io

import pytest
import torch
import torch._dynamo
from torch import nn

import kasmina
import kasmina.torch
from .composition import alike, compare, near, pair, pass_of
from .conftest import settled
from .modules import TOKENS
from .test_equality import close

SGD = pytest.param(lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), id="sgd")
ADAMW = pytest.param(lambda p: torch.optim.AdamW(p, 1e-2, eps=1e-4), id="adamw")


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("host", ["trainer", "daemon"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_gradients_are_those_of_the_straight_through_composition(client, blend, host, alpha):
    names, roles = ("conv-norm", "squeeze"), ("train", "blend")
    layer, plain, shape = pair(client, names, blend, (0.0, alpha), roles, host=host)
    assert [seed.role for seed in layer.seeds] == list(roles) and layer.seeds[0].state == "training"
    for _ in range(2):
        compare(layer, plain, torch.randn(shape), torch.randn(shape))
    layer.eval(), plain.eval()
    compare(layer, plain, torch.randn(shape), torch.randn(shape))


def test_the_output_is_the_hosts_bit_for_bit_and_may_be_written_to(client):
    for blend in ("convex", "residual", "multiply"):
        layer, plain, shape = pair(client, ("conv-norm",), blend, roles=("train",))
        x = torch.randn(shape)
        y = layer(x)
        assert torch.equal(y, layer.host(x))
        torch.relu_(y).sum().backward()
        torch.relu(plain(x)).sum().backward()
        alike(layer, plain)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
@pytest.mark.parametrize("host", ["trainer", "daemon"])
def test_steps_stay_equal(client, optimizer, host):
    names, roles = ("attention", "mlp"), ("blend", "train")
    layer, plain, shape = pair(client, names, "convex", (0.5, 0.0), roles, host=host)
    steps = optimizer(layer.parameters()), optimizer(plain.parameters())
    for _ in range(10):
        x, target = torch.randn(shape), torch.randn(shape)
        for model, step in zip((layer, plain), steps):
            step.zero_grad()
            (model(x) - target).square().mean().backward()
            step.step()
    alike(layer, plain, 2e-3, gradients=False)


def test_only_training_seeds_cost_no_call_where_nothing_is_learnt(client):
    layer, _, shape = pair(client, ("mlp",), roles=("train",))
    seed, x = layer.seeds[0], torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(layer(x), layer.host(x))
    layer.eval()
    assert torch.equal(layer(x), layer.host(x)) and torch.equal(layer.submit(x).result(), layer.host(x))
    assert seed.stats()["executions"] == 0 and layer.stats()["synchronous"] == 0
    layer.train()
    layer(x)
    assert seed.stats()["executions"] == 1


@pytest.mark.parametrize("host", ["trainer", "daemon"])
def test_passes_that_do_not_wait_and_gradients_that_accumulate(daemon, client, host):
    names, roles = ("mlp", "attention"), ("train", "blend")
    layer, plain, shape = pair(client, names, "multiply", (0.0, 0.5), roles, host=host)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(5)]
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    pending = [layer.submit(x) for x in inputs[:4]]
    outputs = [each.result() for each in pending] + [asyncio.run(layer.forward_async(inputs[4]))]
    assert daemon.status()["sessions"][0]["tickets"] == 5
    for index in (3, 0, 4, 1, 2):
        outputs[index].square().sum().backward()
        plain(twins[index]).square().sum().backward()
        near(inputs[index].grad, twins[index].grad, f"input {index}")
    alike(layer, plain)
    assert daemon.status()["sessions"][0]["tickets"] == 0


def test_dropout_of_a_training_seed_follows_torchs_generator(client):
    layer, _, shape = pair(client, ("drop",), roles=("train",))
    x = torch.randn(shape)

    def run(seed):
        torch.manual_seed(seed)
        layer.zero_grad()
        layer(x).square().sum().backward()
        return dict(layer.seeds[0].named_parameters())["linear.weight"].grad.clone()

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("host", ["trainer", "daemon"])
def test_compiled_code_learns_behind_the_layer_too(client, host):
    torch._dynamo.reset()
    names, roles = ("mlp", "attention"), ("train", "blend")
    layer, plain, shape = pair(client, names, "multiply", (0.0, 0.5), roles, host=host)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, gradient = torch.randn(shape), torch.randn(shape)
    for train in (True, False):
        layer.train(train), plain.train(train), layer.zero_grad(), plain.zero_grad()
        (y, grad), (truth, grad_truth) = pass_of(compiled, x, gradient), pass_of(plain, x, gradient)
        close(y, truth, "output")
        near(grad, grad_truth, "input gradient")
        alike(layer, plain)
    layer.seeds[1].prune()
    layer.train()
    with torch.no_grad():
        close(compiled(x), layer.host(x), "without gradients the host alone")
    torch._dynamo.reset()


def test_under_autocast_the_gradients_go_through_both_casts(client):
    layer, plain, shape = pair(client, ("mlp",), roles=("train",))
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        h = plain.host(x)
    assert y.dtype is torch.bfloat16 and torch.equal(y, h)
    y.float().square().sum().backward()
    k = plain.kernels[0](x)
    (h.float() + (k - k.detach())).square().sum().backward()
    for ours, other in zip(layer.seeds[0].parameters(), plain.kernels[0].parameters()):
        near(ours.grad, other.grad, "gradient under autocast", 2e-2)


def test_a_checkpoint_restores_the_role(client, start):
    layer, plain, shape = pair(client, ("conv-norm", "squeeze"), "convex", (0.0, 0.5), ("train", "blend"))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.randn(shape)).square().mean().backward()
    optimizer.step()
    held = io.BytesIO()
    torch.save(layer.state_dict(), held)
    held.seek(0)
    with start().connect() as other:
        restored = kasmina.torch.SeededLayer(nn.Conv2d(6, 6, 3, padding=1), other, "again", 2)
        restored.load_state_dict(torch.load(held, weights_only=True))
        assert [seed.role for seed in restored.seeds] == ["train", "blend"]
        assert [seed.state for seed in restored.seeds] == ["training", "holding"]
        x = torch.randn(shape)
        for model in (layer, restored):
            model.zero_grad()
            model(x).square().sum().backward()
        assert torch.equal(layer(x), restored(x))
        for one, two in zip(layer.parameters(), restored.parameters(), strict=True):
            close(two.grad, one.grad, "after the checkpoint")
        for one, two in zip(layer.buffers(), restored.buffers(), strict=True):
            assert torch.equal(one, two)


@pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
def test_a_training_seed_comes_back_with_the_daemon(daemon):
    with daemon.connect() as client:
        layer, plain, shape = pair(client, ("conv-norm", "squeeze"), "convex", (0.0, 0.5), ("train", "blend"))
        steps = [torch.optim.AdamW(model.parameters(), 1e-2, eps=1e-4) for model in (layer, plain)]

        def step(kernels=True):
            x, target = torch.randn(shape), torch.randn(shape)
            for model, optimizer in zip((layer, plain if kernels else plain.host), steps):
                optimizer.zero_grad()
                (model(x) - target).square().mean().backward()
                optimizer.step()

        for _ in range(3):
            step()
        daemon.kill()
        settled(lambda: not client.connected)
        step(kernels=False)
        daemon.process = daemon.start()
        settled(lambda: layer._arrived)
        for _ in range(3):
            step()
        assert layer.connected and [seed.state for seed in layer.seeds] == ["training", "holding"]
        alike(layer, plain, 2e-3, gradients=False)
        assert layer.seeds[0].stats()["executions"] == 3


def test_a_training_seed_whose_kernel_is_swapped_for_a_blended_one(client):
    layer, plain, shape = pair(client, ("mlp",), roles=("train",))
    layer.seeds[0].graft("mlp", alpha=0.5)
    assert layer.seeds[0].role == "blend"
    plain.roles, plain.numbers = ["blend"], {0: torch.tensor(0.5)}
    compare(layer, plain, torch.randn(shape), torch.randn(shape))
    layer.seeds[0].prune()
    assert layer.seeds[0].role is None
    layer.seeds[0].graft("mlp", train=True, wait=False)
    settled(lambda: layer(torch.randn(TOKENS)) is not None and layer.seeds[0].role == "train")
    assert layer.seeds[0].state == "training"


@pytest.mark.parametrize("host", ["trainer", "daemon"])
def test_what_has_learnt_is_blended_in_and_then_learns_its_own_factor(client, host):
    layer, plain, shape = pair(client, ("mlp",), roles=("train",), host=host)
    seed = layer.seeds[0]
    held = list(seed.parameters())
    steps = [torch.optim.SGD(model.parameters(), 0.05) for model in (layer, plain)]

    def step():
        x, target = torch.randn(shape), torch.randn(shape)
        outputs = []
        for model, optimizer in zip((layer, plain), steps):
            optimizer.zero_grad()
            outputs.append(model(x))
            (outputs[-1] - target).square().mean().backward()
            optimizer.step()
        close(*outputs, "output", 1e-3)

    for _ in range(3):
        step()
    seed.blend(kasmina.Schedule("linear", 4, target=0.5))
    assert seed.role == "blend" and seed.state == "blending"
    plain.roles = ["blend"]
    for n in range(6):
        plain.numbers = {0: torch.tensor(min(n, 4) / 8)}
        step()
    assert seed.state == "holding" and seed.alpha == 0.5
    plain.learn(0, 0.5)
    for optimizer, alpha in zip(steps, (seed.learn_alpha(), plain.alphas["0"])):
        optimizer.add_param_group({"params": [alpha], "lr": 0.05})
    for _ in range(3):
        step()
    assert seed.alpha != 0.5 and all(one is other for one, other in zip(held, seed.parameters()))
    alike(layer, plain, 1e-3, gradients=False)
    # A schedule takes it over from where it has come to, and a fossil learns no factor.
    before = seed.alpha
    seed.blend(kasmina.Schedule("linear", 2))
    assert seed.alpha_parameter is None and seed.alpha == pytest.approx(before)
    for _ in range(2):
        layer(torch.randn(shape))
    seed.fossilize()
    with pytest.raises(kasmina.UsageError, match="fossil"):
        seed.learn_alpha()


def test_a_training_seed_that_fails_is_left_out_and_given_up(client):
    layer, _, shape = pair(client, ("mlp",), roles=("train",))
    with torch.no_grad():
        for parameter in layer.seeds[0].parameters():
            parameter.fill_(3e38)
    x = torch.randn(shape)
    with pytest.warns(kasmina.SeedFailureWarning, match="kernel.non_finite"):
        for _ in range(6):
            assert torch.equal(layer(x), layer.host(x))
    assert layer.seeds[0].state in ("error_recovery", "loading") and layer.seeds[0].stats()["executions"] == 3
