"""Checkpoints, pickles, copies, casts: right, or refused by name."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import kasmina
import kasmina.torch
from .modules import TOKENS, twin
from .test_equality import close


def fresh(client, seeds=2, blend="convex", name="layer", **options):
    return kasmina.torch.SeededLayer(nn.Linear(8, 8), client, name, seeds, blend, **options)


def trained(client, **options):
    """A layer after a few steps, so that its weights are nobody else's."""
    torch.manual_seed(5)
    layer = fresh(client, input_shape=TOKENS[1:], **options)
    layer.seeds[0].graft("attention", alpha=0.4)
    layer.seeds[1].graft("mlp", alpha=0.3)
    dict(layer.seeds[1].named_parameters())["up.bias"].requires_grad_(False)
    optimizer = torch.optim.AdamW(layer.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(TOKENS)).square().mean().backward()
        optimizer.step()
    return layer


def same(ours, theirs, x):
    assert [seed.kernel for seed in ours.seeds] == [seed.kernel for seed in theirs.seeds]
    assert [seed.alpha for seed in ours.seeds] == [seed.alpha for seed in theirs.seeds]
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.requires_grad == b.requires_grad, name
        assert a.data_ptr() != b.data_ptr(), name
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_grafts_and_restores(client, start, tmp_path, weights_only):
    layer = trained(client)
    torch.save(layer.state_dict(), tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=weights_only)
    with start().connect() as other:
        restored = fresh(other)
        assert restored.load_state_dict(state).missing_keys == []
        x = torch.randn(TOKENS)
        same(restored, layer, x)
        # Into a layer that has other kernels, and one that has more.
        restored.seeds[0].prune()
        restored.seeds[1].graft("attention", alpha=1.0)
        restored.load_state_dict(state)
        same(restored, layer, x)
        layer.seeds[0].prune()
        restored.load_state_dict(layer.state_dict())
        assert restored.seeds[0].kernel is None and restored.seeds[0].state == "dormant"
        same(restored, layer, x)


def test_a_seed_that_has_its_kernel_keeps_it_and_its_parameters(client):
    layer = trained(client)
    state = copy.deepcopy(layer.state_dict())
    held = list(layer.parameters())
    with torch.no_grad():
        for parameter in held:
            parameter.zero_()
    layer.seeds[0].alpha = 0.9
    layer.load_state_dict(state)
    assert all(a is b for a, b in zip(held, layer.parameters()))
    assert layer.seeds[0].alpha == 0.4 and all(p.abs().sum() > 0 for p in held)


def test_all_that_is_wrong_with_a_checkpoint_is_one_error(start, kernels, tmp_path):
    daemon = start()
    with daemon.connect() as client:
        model = nn.ModuleDict({"a": trained(client, name="a"), "b": trained(client, name="b", blend="residual")})
        state = model.state_dict()
    (tmp_path / "empty").mkdir()
    with start(kernels=tmp_path / "empty").connect() as other:
        model = nn.ModuleDict({"a": fresh(other, name="a"), "b": fresh(other, name="b", seeds=1)})
        with pytest.raises(RuntimeError) as caught:
            model.load_state_dict(state)
    text = str(caught.value)
    assert "layer 'a', seed 0: kernel.not_found" in text and "layer 'a', seed 1: kernel.not_found" in text
    assert "layer 'b': the checkpoint is of blend='residual', the layer was made with 'convex'" in text
    assert "has a kernel in seed 1, the layer has 1 seeds" in text
    assert "seeds.0.qkv.weight" not in text, "each tensor of a kernel that is missing is no error of its own"


def test_a_checkpoint_that_is_no_ones(client):
    layer = trained(client)
    state = layer.state_dict()
    state["_extra_state"] = torch.ones(7, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="_extra_state in the checkpoint cannot be read"):
        layer.load_state_dict(state)
    with pytest.raises(kasmina.KasminaError, match="cannot be read"):
        layer.set_extra_state({"no": "tensor"})


def test_a_checkpoint_outlives_the_daemon(daemon, client):
    layer = trained(client)
    daemon.kill()
    state = layer.state_dict()
    assert state["seeds.0.qkv.weight"].isfinite().all()
    with pytest.raises(RuntimeError, match="seed 0: session.lost"), pytest.warns(RuntimeWarning):
        layer(torch.randn(TOKENS)).sum().backward()
        raise RuntimeError("seed 0: session.lost")


def test_a_whole_model_is_saved_and_loaded(client, start, tmp_path):
    layer = trained(client)
    layer.register_forward_hook(calls_back)
    layer.note = "kept"
    model = nn.Sequential(nn.Linear(8, 8), layer)
    torch.save(model, tmp_path / "model.pt")
    with start().connect() as other:
        with pytest.raises(kasmina.UsageError, match="kasmina.torch.restoring"):
            torch.load(tmp_path / "model.pt", weights_only=False)
        with kasmina.torch.restoring(other):
            loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        assert loaded[1].client is other and loaded[1].note == "kept"
        assert loaded[1].training and len(loaded[1]._forward_hooks) == 1
        same(loaded[1], layer, torch.randn(TOKENS))
        loaded[1](torch.randn(TOKENS)).sum().backward()
    with kasmina.torch.restoring(client):
        same(pickle.loads(pickle.dumps(layer)), layer, torch.randn(TOKENS))


def calls_back(module, inputs, output):
    return output


def test_a_copy_is_a_layer_of_its_own(client):
    layer = trained(client)
    model = nn.Sequential(nn.Linear(8, 8), layer)
    other = copy.deepcopy(model)
    assert other[1].client is client and other[1].remote.number != layer.remote.number
    x = torch.randn(TOKENS)
    same(other[1], layer, x)
    before = layer(x).detach()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), before)
    with pytest.raises(kasmina.UsageError, match="copy.deepcopy"):
        copy.copy(layer)
    with pytest.raises(kasmina.UsageError, match="state_dict"):
        copy.deepcopy(layer.seeds[0])
    number = other[1].remote.number
    del other
    gc.collect()
    with pytest.raises(kasmina.SessionError):
        client.request("seed_state", layer=number, seed=0)


def test_averages_of_weights(client):
    """Against the same average in plain PyTorch."""
    torch.manual_seed(5)
    layer = fresh(client, input_shape=TOKENS[1:], seeds=1, blend="residual")
    layer.seeds[0].graft("mlp", alpha=0.5)
    host, module = copy.deepcopy(layer.host), twin("mlp")
    plain = nn.ModuleList([host, module])
    average = get_ema_multi_avg_fn(0.9)
    ours, theirs = AveragedModel(layer, multi_avg_fn=average), AveragedModel(plain, multi_avg_fn=average)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (layer, plain)]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 6) for o in optimizers]
    for _ in range(6):
        x = torch.randn(TOKENS)
        for model, run, optimizer, scheduler, averaged in (
            (layer, layer, optimizers[0], schedulers[0], ours),
            (plain, lambda v: host(v) + 0.5 * module(v), optimizers[1], schedulers[1], theirs),
        ):
            optimizer.zero_grad()
            run(x).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            averaged.update_parameters(model)
    for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        close(a, b, "average")
    x = torch.randn(TOKENS)
    close(ours(x), theirs.module[0](x) + 0.5 * theirs.module[1](x), "the average runs")
    with pytest.warns(UserWarning, match="no longer pair up"):
        layer.seeds[0].prune()
    ours.module.load_state_dict(layer.state_dict())
    ours.update_parameters(layer)


def test_moves_and_casts(client):
    layer = trained(client)
    for move in (lambda: layer.half(), lambda: layer.to(torch.float64), lambda: nn.Sequential(layer).bfloat16()):
        with pytest.raises(kasmina.UsageError, match="cast the model before grafting"):
            move()
    with pytest.raises(kasmina.UsageError, match="runs layer 'layer' on cpu"):
        layer.to("meta")
    assert layer.host.weight.dtype is torch.float32 and layer.host.weight.device.type == "cpu", "nothing was moved"
    layer(torch.randn(TOKENS))
    assert layer.to("cpu") is layer and layer.float() is layer
    # Before grafting the layer follows its host, in the daemon too.
    layer = fresh(client, seeds=1, input_shape=TOKENS[1:]).to(torch.bfloat16)
    layer.seeds[0].graft("mlp-bfloat16", alpha=0.5)
    x = torch.randn(TOKENS, dtype=torch.bfloat16)
    close(layer(x), 0.5 * layer.host(x) + 0.5 * twin("mlp").bfloat16()(x), "cast", 2e-2)
    layer.seeds[0].prune()
    layer.float().seeds[0].graft("mlp", alpha=1.0)
    close(layer(x.float()), twin("mlp")(x.float()), "cast back")


def test_autocast_computes_in_the_layers_type_and_casts_at_the_border(client):
    layer = trained(client)
    x = torch.randn(TOKENS, requires_grad=True)
    plain = kasmina.torch.SeededLayer(nn.Identity(), client, "plain", 1, input_shape=TOKENS[1:])
    plain.seeds[0].graft("mlp", alpha=0.5)
    with pytest.raises(kasmina.UsageError, match="autocast"):
        plain(x.half())
    with torch.autocast("cpu", torch.bfloat16):
        h = layer.host(x)
        assert h.dtype is torch.bfloat16
        y = layer(x)
        from_half = layer(h)
    assert y.dtype is torch.bfloat16 and from_half.dtype is torch.bfloat16
    gradient = torch.randn(TOKENS).bfloat16()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    ours = torch.autograd.grad(y, [x, *parameters], gradient)
    plain = x.detach().clone().requires_grad_()
    share = 1 - sum(seed.alpha for seed in layer.seeds)
    with torch.autocast("cpu", torch.bfloat16):
        h = layer.host(plain)
    truth = layer._guarded(None, lambda: kasmina.torch._function.run(layer, plain, h.float())).bfloat16()
    assert torch.equal(y, truth)
    theirs = torch.autograd.grad(truth, [plain, *parameters], gradient)
    for a, b in zip(ours, theirs):
        assert a.dtype is b.dtype and torch.equal(a, b)
    close(ours[1], (share * gradient.float()).reshape(-1, 8).t() @ x.detach().reshape(-1, 8), "host", 2e-2)


def test_something_that_replaces_parameters_is_refused(client):
    layer = trained(client)
    with pytest.raises(kasmina.UsageError, match="FSDP"):
        nn.utils.parametrizations.weight_norm(layer.seeds[1].up)
    with pytest.raises(kasmina.UsageError, match="FSDP"):
        layer.seeds[1].up.weight = nn.Parameter(torch.zeros(16, 8))
    with pytest.raises(kasmina.UsageError, match="FSDP"):
        del layer.seeds[1].up.weight
    layer(torch.randn(TOKENS)).sum().backward()
