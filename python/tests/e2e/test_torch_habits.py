"""What people do with modules and optimizers every day."""

import copy

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .composition import compare, host_for, near, pair
from .modules import IMAGE, TOKENS


def test_a_kernel_is_taken_out_of_an_optimizer(client):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5])
    layer.seeds[0].prune(embargo=0)
    optimizer = torch.optim.Adam(layer.parameters())
    before = None
    for _ in range(3):
        layer.seeds[0].graft("mlp", alpha=0.5)
        optimizer.add_param_group({"params": list(layer.seeds[0].parameters())})
        layer(torch.randn(shape)).sum().backward()
        optimizer.step()
        kasmina.torch.forget(optimizer, layer.seeds[0].parameters())
        layer.seeds[0].prune(embargo=0)
        state = optimizer.state_dict()
        assert len(state["param_groups"]) == 1 and len(state["state"]) == len(optimizer.state) == 2
        assert before is None or before == state["param_groups"]
        before = state["param_groups"]
    mixed = torch.optim.SGD([*layer.host.parameters()], 0.1)
    kasmina.torch.forget(mixed, [layer.host.bias])
    assert [id(p) for p in mixed.param_groups[0]["params"]] == [id(layer.host.weight)]


def test_model_and_optimizer_are_copied_together(client):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5])
    layer.seeds[0].learn_alpha(0.3)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(shape)).sum().backward()
    optimizer.step()
    other, its = copy.deepcopy((model, optimizer))
    held = {id(p) for group in its.param_groups for p in group["params"]}
    assert held == {id(p) for p in other.parameters()}
    x = torch.randn(shape)
    for one, each in ((model, optimizer), (other, its)):
        each.zero_grad()
        one(x).square().sum().backward()
        each.step()
    near(other(x), model(x), "after a step of both")


def test_seeds_outlive_a_cast_before_the_graft(client):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, input_shape=TOKENS[1:])
    seed = layer.seeds[0]
    layer.eval()
    layer.to(torch.bfloat16)
    assert layer.seeds[0] is seed and not seed.training
    seed.graft("mlp-bfloat16", alpha=0.5)
    x = torch.randn(TOKENS, dtype=torch.bfloat16)
    assert not torch.equal(layer(x), layer.host(x)) and len(list(layer.parameters())) == 6


def test_loading_does_not_unfreeze(client):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5])
    state = layer.state_dict()
    layer.requires_grad_(False)
    layer.load_state_dict(state)
    assert not any(p.requires_grad for p in layer.parameters()) and not layer(torch.randn(shape)).requires_grad


@pytest.mark.parametrize("wait", (True, False))
def test_a_graft_of_a_wrong_shape_spoils_nothing(client, wait):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client)
    x = torch.randn(TOKENS)
    layer(x)
    with pytest.raises(kasmina.KasminaError):
        layer.seeds[0].graft("mlp", input_shape=(3, 9))
    assert layer.input_shape == (3, 8)
    layer.seeds[0].graft("mlp", alpha=0.5)
    assert not torch.equal(layer(x), layer.host(x))
    assert wait or layer.seeds[0].loading is None


def test_types_that_no_kernel_has_are_refused_at_once(client):
    with pytest.raises(kasmina.UsageError, match="kernels compute in float32, .*, float16, not in int32"):
        kasmina.torch.SeededLayer(nn.Linear(8, 8), client, dtype=torch.int32)
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, input_shape=TOKENS[1:])
    with pytest.raises(kasmina.UsageError, match="not in complex64"):
        layer.to(torch.complex64)
    layer.seeds[0].graft("mlp", alpha=0.5)
    assert layer(torch.randn(TOKENS)).dtype is torch.float32


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def test_calls_that_a_layer_cannot_take_say_so(client):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5])
    x = torch.randn(shape)
    with pytest.raises(kasmina.UsageError, match=r"first argument.*not with input="):
        layer(input=x)
    pairs = kasmina.torch.SeededLayer(Pair(), client, input_shape=shape[1:])
    assert isinstance(pairs(x), tuple) and isinstance(pairs.submit(x).result(), tuple)
    pairs.seeds[0].graft("mlp", alpha=0.5)
    for call in (pairs, pairs.submit):
        with pytest.raises(kasmina.UsageError, match="a Pair, returns a tuple"):
            call(x)
    images = kasmina.torch.SeededLayer(host_for(IMAGE), client, input_shape=IMAGE[1:], host="daemon")
    images.seeds[0].graft("conv-norm", alpha=0.5)
    with pytest.raises(kasmina.UsageError, match=r'\[6, 5, 5\] without the batch, and this one is of \[6, 7, 7\].*host="trainer"'):
        images(torch.randn(4, 6, 7, 7))


def test_another_host_by_add_module(client):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5])
    layer.add_module("host", copy.deepcopy(layer.host))
    plain.host = copy.deepcopy(layer.host)
    with torch.no_grad():
        for model in (layer, plain):
            model.host.weight.fill_(0.1)
    compare(layer, plain, torch.randn(shape), torch.randn(shape))


def test_a_mode_of_a_seeds_own_is_warned_of(client):
    layer, _, _ = pair(client, ["conv-norm"], "convex", [0.5])
    with pytest.warns(UserWarning, match="seed 0 of layer 'layer' runs in training mode, as its layer does"):
        layer.seeds[0].eval()


def test_no_seed_is_present_while_the_daemon_is_dead(daemon, client):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5])
    assert layer.seeds[0].present
    daemon.kill()
    with pytest.warns(kasmina.ConnectionWarning):
        layer(torch.randn(shape))
    assert not layer.seeds[0].present


def test_a_refusal_says_what_to_do(start):
    daemon = start(settings="[engine]\nmax_tickets_per_layer = 2\n")
    with daemon.connect() as client:
        layer, _, shape = pair(client, ["mlp"], "convex", [0.5], name="a.rather.long.name.of.layers.3.blocks.7")
        with pytest.raises(kasmina.SessionError) as refused:
            kept = [layer(torch.randn(shape)) for _ in range(3)]
            assert not kept
    said = str(refused.value)
    for advice in ("engine.max_tickets_per_layer is 2", "torch.no_grad()", "wait_for_room_s", "raise engine.max_tickets_per_layer"):
        assert advice in said


@pytest.mark.parametrize("host", ("trainer", "daemon"))
def test_y_is_of_the_hosts_type_under_autocast(client, host):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain.host(x).dtype is torch.bfloat16
        for y in (layer(x), layer.submit(x).result()):
            assert y.dtype is torch.bfloat16
            near(y.float(), plain(x).float(), "output", 2e-2)
    assert layer(x).dtype is torch.float32
