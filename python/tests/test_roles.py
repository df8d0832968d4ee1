"""Seeds that learn behind their layer, learnt blend factors and hosts in the daemon, beside plain PyTorch.

The daemon is the peer here; python/tests/e2e asks the same of the real one.
"""

import asyncio
import copy
import gc
import io
import threading
import warnings

import pytest
import torch
from torch import nn

import kasmina
from conftest import kernels
from kasmina.torch import SeededLayer


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def layer_of(client, names, blend="convex", **options):
    torch.manual_seed(3)
    options.setdefault("seeds", len(names))
    layer = SeededLayer(nn.Linear(3, 3), client, name="fc", blend=blend, input_shape=(3,), **options)
    return layer, copy.deepcopy(layer.host), [copy.deepcopy(kernels()[name]) for name in names]


def composed(blend, h, x, alphas, outputs):
    if blend == "multiply":
        for alpha, k in zip(alphas, outputs):
            h = h * (1 + alpha * torch.tanh(k - x))
        return h
    if blend == "residual":
        return h + sum(alpha * k for alpha, k in zip(alphas, outputs))
    total = sum(alphas)
    weight = torch.where(total <= 1, total, torch.ones(()))
    scale = weight / total if total > 0 else 1.0
    return (1 - weight) * h + scale * sum(alpha * k for alpha, k in zip(alphas, outputs))


def behind(y, x, module):
    """The kernel learns behind y."""
    k = module(x.detach())
    return y + (k - k.detach())


# training seeds


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("host", ["trainer", "daemon"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_seed_learns_behind_the_layer(client, blend, host, alpha):
    layer, theirs, (blended, learning) = layer_of(client, ["linear", "mlp"], blend, host=host)
    layer.seeds[0].graft("linear", alpha=alpha)
    layer.seeds[1].graft("mlp", train=True)
    assert layer.seeds[1].role == "train"
    x = torch.randn(4, 3, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y = layer(x)
    h = theirs(x2)
    plain = composed(blend, h, x2, [torch.tensor(alpha)], [blended(x2)]) if alpha else h
    if host == "trainer" and not alpha:
        assert torch.equal(y, h)
    close(y, plain)
    g = torch.randn(4, 3)
    y.backward(g)
    behind(plain, x2, learning).backward(g)
    close(x.grad, x2.grad)
    for ours, other in zip(layer.seeds[1].parameters(), learning.parameters()):
        close(ours.grad, other.grad)
    for ours, other in zip(layer.host.parameters(), theirs.parameters()):
        close(ours.grad, other.grad)


def test_a_layer_with_only_training_seeds_asks_the_daemon_for_nothing_else(peer, client):
    layer, theirs, _ = layer_of(client, ["mlp"])
    layer.seeds[0].graft("mlp", train=True)
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(layer(x), theirs(x))
    layer.eval()
    assert torch.equal(layer(x), theirs(x))
    assert peer.forwards == 0
    layer.train()
    y = layer(x)
    assert torch.equal(y, theirs(x)) and peer.forwards == 1
    y.relu_().sum().backward()
    assert layer.seeds[0].get_parameter("0.weight").grad is not None


def test_a_failing_seed_in_training_leaves_the_output_alone(peer, client):
    layer, theirs, _ = layer_of(client, ["fails"])
    layer.seeds[0].graft("fails", train=True)
    x = torch.randn(2, 3)
    with pytest.warns(kasmina.SeedFailureWarning):
        for _ in range(5):
            assert torch.equal(layer(x), theirs(x))
    assert layer.last_failures == {} and layer.seeds[0].stats()["executions"] == 3


def test_training_seeds_in_passes_that_do_not_wait(client):
    layer, theirs, (learning,) = layer_of(client, ["mlp"])
    layer.seeds[0].graft("mlp", train=True)
    x = torch.randn(2, 3)
    pending = layer.submit(x)
    y, z = pending.result(), asyncio.run(layer.forward_async(2 * x))
    assert torch.equal(y, theirs(x))
    (y + z).sum().backward()
    (behind(theirs(x), x, learning) + behind(theirs(2 * x), 2 * x, learning)).sum().backward()
    for ours, other in zip(layer.parameters(), [*theirs.parameters(), *learning.parameters()]):
        close(ours.grad, other.grad)


# learnt blend factors


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("host", ["trainer", "daemon"])
@pytest.mark.parametrize("alphas", [(0.3, 0.2), (0.9, 0.7), (0.0, 0.5), (0.0, 0.0), (1.0, 0.0)])
def test_a_learnt_alpha_has_the_gradient_of_its_composition(client, blend, host, alphas):
    layer, theirs, modules = layer_of(client, ["linear", "mlp"], blend, host=host)
    for seed, name in zip(layer.seeds, ("linear", "mlp")):
        seed.graft(name)
    ours = [seed.learn_alpha(alpha) for seed, alpha in zip(layer.seeds, alphas)]
    others = [torch.tensor(alpha, requires_grad=True) for alpha in alphas]
    x = torch.randn(4, 3, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, plain = layer(x), composed(blend, theirs(x2), x2, others, [module(x2) for module in modules])
    close(y, plain)
    g = torch.randn(4, 3)
    y.backward(g)
    plain.backward(g)
    close(x.grad, x2.grad)
    for one, other in zip(ours, others):
        close(one.grad, other.grad)
    for seed, module in zip(layer.seeds, modules):
        for one, other in zip(seed.parameters(), module.parameters()):
            close(one.grad, other.grad)


@pytest.mark.parametrize("value, passes", [(-0.5, False), (0.0, True), (1.0, True), (1.5, False)])
def test_an_alpha_out_of_range_is_clamped_and_learns_within(peer, client, value, passes):
    layer, *_ = layer_of(client, ["linear"])
    layer.seeds[0].graft("linear")
    alpha = layer.seeds[0].learn_alpha()
    with torch.no_grad():
        alpha.fill_(value)
    layer(torch.randn(2, 3)).square().sum().backward()
    assert peer.given[-1] == [min(max(value, 0.0), 1.0)] and layer.seeds[0].alpha == peer.given[-1][0]
    assert bool(alpha.grad != 0) is passes


def test_learnt_and_fixed_alphas_side_by_side(peer, client):
    layer, theirs, modules = layer_of(client, ["linear", "mlp"])
    layer.seeds[0].graft("linear", alpha=0.25)
    layer.seeds[1].graft("mlp", alpha=0.125)
    alpha = layer.seeds[1].learn_alpha()
    assert alpha.item() == 0.125 and layer.seeds[1].alpha_parameter is alpha
    x = torch.randn(2, 3)
    y = layer(x)
    assert peer.given[-1][0] != peer.given[-1][0] and peer.given[-1][1] == 0.125
    close(y, composed("convex", theirs(x), x, [torch.tensor(0.25), alpha], [module(x) for module in modules]))
    layer.seeds[1].alpha = 0.5
    assert alpha.item() == 0.5
    layer.seeds[1].fix_alpha()
    assert layer.seeds[1].alpha == 0.5 and layer.seeds[1].alpha_parameter is None
    close(layer(x), composed("convex", theirs(x), x, torch.tensor([0.25, 0.5]), [module(x) for module in modules]))
    assert peer.given[-1] != peer.given[-1] or all(value != value for value in peer.given[-1])
    assert "alphas.1" not in layer.state_dict()


def test_a_learnt_alpha_of_zero_costs_nothing_where_nothing_is_learnt(peer, client):
    layer, theirs, _ = layer_of(client, ["linear"])
    layer.seeds[0].graft("linear")
    layer.seeds[0].learn_alpha()
    x = torch.randn(2, 3)
    with torch.no_grad():
        assert torch.equal(layer(x), theirs(x))
    assert peer.forwards == 0
    y = layer(x)
    assert peer.forwards == 1 and torch.equal(y, theirs(x))
    with torch.no_grad():
        layer.seeds[0].alpha_parameter.fill_(float("nan"))
    with pytest.raises(kasmina.UsageError, match="not a number"):
        layer(x)


def test_learnt_alphas_accumulate_and_step(client):
    layer, theirs, (module,) = layer_of(client, ["mlp"])
    layer.seeds[0].graft("mlp")
    layer.seeds[0].learn_alpha(0.4)
    other = nn.Parameter(torch.tensor(0.4))
    ours = torch.optim.AdamW(layer.parameters(), lr=0.05)
    plain = torch.optim.AdamW([*theirs.parameters(), other, *module.parameters()], lr=0.05)
    for _ in range(6):
        batches = [torch.randn(3, 3) for _ in range(3)]
        ours.zero_grad()
        outputs = [layer(x) for x in batches]
        for y in outputs:
            (y - 1).square().mean().backward()
        ours.step()
        plain.zero_grad()
        for x in batches:
            y = composed("convex", theirs(x), x, [other], [module(x)])
            (y - 1).square().mean().backward()
        plain.step()
        close(layer.seeds[0].alpha_parameter, other)
    for one, two in zip(layer.seeds[0].parameters(), module.parameters()):
        close(one, two)


def test_a_kernel_with_a_parameter_called_alpha(client):
    layer, *_ = layer_of(client, ["named"])
    seed = layer.seeds[0].graft("named")
    alpha = seed.learn_alpha(0.5)
    assert set(dict(layer.named_parameters())) >= {"alphas.0", "seeds.0.alpha", "seeds.0.state"}
    layer(torch.randn(2, 3)).sum().backward()
    assert alpha.grad is not None and dict(seed.named_parameters())["alpha"].grad is not None
    seed.prune()
    assert "alphas.0" not in dict(layer.named_parameters()) and seed.alpha == 0.0
    with pytest.raises(kasmina.UsageError, match="graft one first"):
        seed.learn_alpha()


@pytest.mark.parametrize("host", ["trainer", "daemon"])
def test_checkpoints_and_copies_keep_roles_and_learnt_alphas(client, host):
    layer, *_ = layer_of(client, ["linear", "mlp"], seeds=2, host=host)
    layer.seeds[0].graft("linear")
    layer.seeds[0].learn_alpha(0.3)
    layer.seeds[1].graft("mlp", train=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.01)
    held = io.BytesIO()
    torch.save(layer.state_dict(), held)
    held.seek(0)
    state = torch.load(held, weights_only=True)
    for assign in (False, True):
        fresh, *_ = layer_of(client, ["linear", "mlp"], seeds=2, host=host)
        fresh.load_state_dict(state, assign=assign)
        assert fresh.seeds[1].role == "train" and fresh.seeds[0].alpha_parameter.item() == pytest.approx(0.31)
        x = torch.randn(2, 3)
        close(fresh(x), layer(x))
        assert fresh.seeds[0].alpha_parameter is dict(fresh.named_parameters())["alphas.0"]
    made = copy.deepcopy(layer)
    assert made.seeds[1].role == "train" and made.seeds[0].alpha == pytest.approx(0.31)
    assert made.seeds[0].alpha_parameter is not layer.seeds[0].alpha_parameter
    close(made(x), layer(x))
    # A checkpoint without them takes them away.
    plain, *_ = layer_of(client, ["linear", "mlp"], seeds=2)
    plain.seeds[0].graft("linear", alpha=0.25), plain.seeds[1].graft("mlp", alpha=0.25)
    layer.load_state_dict(plain.state_dict())
    assert layer.seeds[0].alpha_parameter is None and layer.seeds[1].role == "blend"
    close(layer(x), plain(x))


# hosts in the daemon


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.drop = nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Dropout(0.0)
        self.register_buffer("scale", torch.full((3,), 0.5), persistent=False)

    def forward(self, x):
        return self.drop(self.fc(self.norm(x))) * self.scale


def hosted(client, module, **options):
    return SeededLayer(module, client, name="hosted", input_shape=(3,), host="daemon", **options)


def test_a_host_in_the_daemon_keeps_its_parameters_as_objects(peer, client):
    torch.manual_seed(1)
    block = Block()
    theirs, before = copy.deepcopy(block), {name: id(each) for name, each in block.state_dict(keep_vars=True).items()}
    optimizer = torch.optim.AdamW(block.parameters(), lr=0.05)
    other = torch.optim.AdamW([*theirs.parameters()], lr=0.05)
    layer = hosted(client, block, blend="residual")
    layer.seeds[0].graft("frozen", alpha=0.5)
    module = kernels()["frozen"]
    for _ in range(4):
        x = torch.randn(5, 3)
        for step, y in ((optimizer, layer(x)), (other, theirs(x) + 0.5 * module(x))):
            step.zero_grad()
            y.square().mean().backward()
            step.step()
    assert peer.forwards == 4
    assert {name: id(each) for name, each in block.state_dict(keep_vars=True).items()} == before
    for name, value in theirs.state_dict().items():
        close(block.state_dict()[name], value)
    assert set(layer.state_dict()) >= {f"host.{name}" for name in theirs.state_dict()}
    layer.seeds[0].prune()
    layer.eval(), theirs.eval()
    close(layer(x), theirs(x))
    assert peer.forwards == 4, "without a live seed it runs here"


def test_what_replaces_a_hosts_tensors_is_followed(client):
    torch.manual_seed(1)
    layer = hosted(client, nn.Linear(3, 3), blend="residual")
    layer.seeds[0].graft("linear", alpha=0.5)
    k = kernels()["linear"]
    x = torch.randn(2, 3)
    theirs = nn.Linear(3, 3)
    layer.host.load_state_dict(theirs.state_dict(), assign=True)
    close(layer(x), theirs(x) + 0.5 * k(x))
    layer.host.weight = nn.Parameter(torch.ones(3, 3))
    theirs.weight.data.fill_(1.0)
    close(layer(x), theirs(x) + 0.5 * k(x))
    layer.host.bias.data = torch.ones(3)
    theirs.bias.data.fill_(1.0)
    close(layer(x), theirs(x) + 0.5 * k(x))
    layer.host = other = nn.Linear(3, 3)
    close(layer(x), other(x) + 0.5 * k(x))
    layer.host.weight = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(kasmina.UsageError, match="make the layer anew"):
        layer(x)


def test_frozen_and_thawed_parameters_of_a_host(client):
    host = nn.Linear(3, 3)
    host.weight.requires_grad_(False)
    layer = hosted(client, host, blend="residual")
    layer.seeds[0].graft("frozen", alpha=0.5)
    assert not host.weight.requires_grad
    x = torch.randn(2, 3)
    layer(x).sum().backward()
    assert host.weight.grad is None and host.bias.grad is not None
    host.weight.requires_grad_(True)
    layer(x).sum().backward()
    close(host.weight.grad, x.sum(0).expand(3, 3))


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize("module, why", [(Branches(), "cannot be exported"), (Tied(), "one tensor"), (Pair(), "one tensor")])
def test_a_host_that_the_daemon_cannot_run_says_what_to_do(client, module, why):
    with pytest.raises(kasmina.UsageError, match=f"{why}.*host=\"trainer\""):
        hosted(client, module)


def test_modes_and_arguments_that_a_host_in_the_daemon_cannot_have(client):
    layer = hosted(client, Block())
    layer.seeds[0].graft("linear", alpha=0.5)
    x = torch.randn(2, 3)
    layer.host.norm.eval()
    with pytest.raises(kasmina.UsageError, match="one mode.*BatchNorm1d"):
        layer(x)
    layer.train()
    with pytest.raises(kasmina.UsageError, match="one tensor"):
        layer(x, 1)
    with pytest.raises(kasmina.UsageError, match="float64"):
        layer(x.double())
    with pytest.raises(kasmina.UsageError, match="runs in the trainer or in the daemon"):
        SeededLayer(nn.Linear(3, 3), client, host="elsewhere")


def test_handing_over_shows_nowhere(client):
    torch.manual_seed(4)
    state = torch.get_rng_state()
    block = Block()
    block.norm.eval()
    torch.set_rng_state(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hosted(client, block)
    assert torch.equal(torch.get_rng_state(), state)
    assert block.training and not block.norm.training and block.norm.num_batches_tracked == 0


def test_a_host_whose_shape_is_learnt_by_the_first_call(peer, client):
    torch.manual_seed(1)
    layer = SeededLayer(nn.Linear(3, 3), client, host="daemon", blend="residual")
    x = torch.randn(2, 3)
    layer(x)
    assert len(peer.offers) == 1 and peer.forwards == 0
    layer.seeds[0].graft("linear", alpha=1.0)
    close(layer(x), layer.host(x) + kernels()["linear"](x))
    assert peer.forwards == 1
    close(layer.submit(x).result(), layer.host(x) + kernels()["linear"](x))
    close(layer(torch.randn(1, 3)).shape, torch.Size([1, 3]))


def test_threads_that_come_first_together_hand_a_host_over_once(peer, client):
    layer = SeededLayer(nn.Linear(3, 3), client, host="daemon", input_shape=None)
    x = torch.randn(2, 3)
    threads = [threading.Thread(target=layer, args=(x,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peer.offers) == 1
    layer.seeds[0].graft("linear", alpha=1.0)
    close(layer(x), kernels()["linear"](x))


def test_casts_hand_a_host_over_again(peer, client):
    layer = hosted(client, nn.Linear(3, 3))
    layer.float()
    assert len(peer.offers) == 1
    held = layer.host.weight
    layer.double()
    assert layer.host.weight is held and held.dtype is torch.float64
    layer.float()
    layer.seeds[0].graft("linear", alpha=0.5)
    layer(torch.randn(2, 3)).sum().backward()
    assert held.grad is not None and len(peer.offers) == 2


def test_artifacts_of_hosts_go_with_their_layers(client):
    layer = hosted(client, nn.Linear(3, 3))
    kernel = layer._hosted.kernel
    assert client._offers.get(kernel) is not None
    del layer
    gc.collect()
    assert client._offers.get(kernel) is None


def test_a_daemon_that_dies_before_it_looks_leaves_the_host(peer, client):
    layer = hosted(client, nn.Linear(3, 3))
    layer.seeds[0].graft("linear", alpha=0.5)
    x = torch.randn(2, 3, requires_grad=True)
    peer.kernels["deaf"] = True
    with pytest.warns(kasmina.ConnectionWarning):
        y = layer(x)
    assert torch.equal(y, layer.host(x)) and not layer.connected
    y.sum().backward()
    assert layer.host.weight.grad is not None and x.grad is not None


def test_recompute_is_asked_for_and_changes_nothing_else(client):
    layer, theirs, (module,) = layer_of(client, ["mlp"], recompute=True)
    assert layer.remote.spec["recompute"] and not layer.remote.spec["host"]
    layer.seeds[0].graft("mlp", alpha=0.5)
    x = torch.randn(2, 3)
    close(layer(x), 0.5 * theirs(x) + 0.5 * module(x))
