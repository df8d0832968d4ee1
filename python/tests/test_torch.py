"""SeededLayer beside the same modules run in this process."""

import copy
import gc
import threading
import warnings

import pytest
import torch
from torch import nn

import kasmina
from conftest import kernels
from kasmina.torch import SeededLayer


class Reference(nn.Module):
    """What a layer computes, by PyTorch alone."""

    def __init__(self, host, modules, alphas, blend):
        super().__init__()
        self.host, self.blend = host, blend
        self.modules_ = nn.ModuleList(modules)
        self.alphas = nn.Parameter(torch.tensor(alphas))

    def forward(self, x):
        h = self.host(x)
        if self.blend == "multiply":
            for alpha, module in zip(self.alphas, self.modules_):
                h = h * (1 + alpha * torch.tanh(module(x) - x))
            return h
        if self.blend == "residual":
            return h + sum(alpha * module(x) for alpha, module in zip(self.alphas, self.modules_))
        total = self.alphas.sum()
        weight = torch.where(total <= 1, total, torch.ones(()))
        mixed = sum(alpha * module(x) for alpha, module in zip(self.alphas, self.modules_))
        return (1 - weight) * h + weight / total * mixed


def both(client, names, alphas, blend, **options):
    torch.manual_seed(3)
    host = nn.Linear(3, 3)
    layer = SeededLayer(host, client, name="fc", seeds=len(names), blend=blend, input_shape=(3,), **options)
    for seed, name, alpha in zip(layer.seeds, names, alphas):
        seed.graft(name, alpha=alpha)
    modules = [copy.deepcopy(kernels()[name]) for name in names]
    return layer, Reference(copy.deepcopy(host), modules, alphas, blend)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
@pytest.mark.parametrize("alphas", [[0.3, 0.2], [0.9, 0.7], [0.25, 0.75]])
def test_values_and_gradients_are_pytorchs(client, blend, alphas):
    layer, reference = both(client, ["linear", "mlp"], alphas, blend, alpha_gradients=True)
    x = torch.randn(4, 3, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, y2 = layer(x), reference(x2)
    close(y, y2)
    g = torch.randn(4, 3)
    y.backward(g)
    y2.backward(g)
    close(x.grad, x2.grad)
    for seed, module in zip(layer.seeds, reference.modules_):
        theirs = dict(module.named_parameters())
        ours = dict(seed.named_parameters())
        assert list(ours) == list(theirs)
        for name in ours:
            close(ours[name].grad, theirs[name].grad)
    for ours, theirs in zip(layer.host.parameters(), reference.host.parameters()):
        close(ours.grad, theirs.grad)
    close(torch.tensor([seed.alpha_grad for seed in layer.seeds]), reference.alphas.grad)


def test_training_stays_equal_over_many_steps(client):
    layer, reference = both(client, ["mlp", "norm"], [0.4, 0.3], "convex")
    reference.alphas.requires_grad_(False)
    ours = torch.optim.AdamW(layer.parameters(), lr=0.01)
    theirs = torch.optim.AdamW([p for p in reference.parameters() if p.requires_grad], lr=0.01)
    for step in range(20):
        x = torch.randn(8, 3)
        for model, optimizer in ((layer, ours), (reference, theirs)):
            optimizer.zero_grad()
            (model(x) ** 2).mean().backward()
            optimizer.step()
    x = torch.randn(8, 3)
    layer.eval(), reference.eval()
    with torch.no_grad():
        close(layer(x), reference(x))
    close(layer.seeds[1].running_mean, reference.modules_[1].running_mean)
    assert int(layer.seeds[1].num_batches_tracked) == 20


def test_without_a_live_seed_the_daemon_is_not_called(peer, client):
    host = nn.Linear(3, 3)
    layer = SeededLayer(host, client, seeds=2)
    x = torch.randn(2, 3)
    assert torch.equal(layer(x), host(x))
    assert layer.input_shape == (3,)
    layer.seeds[0].graft("linear")
    assert torch.equal(layer(x), host(x))
    assert peer.forwards == 0
    layer.seeds[0].alpha = 0.5
    assert not torch.equal(layer(x), host(x))
    layer.seeds[0].prune()
    assert torch.equal(layer(x), host(x))
    assert peer.forwards == 1


def test_hooks_of_a_quiet_layer_run(client):
    layer = SeededLayer(nn.Linear(3, 3), client)
    layer(torch.randn(2, 3))
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(2, 3))
    assert seen == [1]


def test_no_grad_takes_no_ticket_and_dropped_graphs_return_theirs(peer, client):
    layer, _ = both(client, ["mlp"], [0.5], "convex")
    x = torch.randn(2, 3)
    with torch.no_grad():
        layer(x)
    with torch.inference_mode():
        layer(x)
    assert peer.tickets == {}
    y = layer(x)
    assert len(peer.tickets) == 1
    del y
    gc.collect()
    with torch.no_grad():
        layer(x)
    assert peer.tickets == {}


def test_a_refused_pass_holds_nothing_once_its_error_is_gone(peer, client):
    layer, _ = both(client, ["linear"], [1.0], "convex")
    heap, x = client.connection._heap, torch.randn(2, 3)
    gc.collect()
    gc.disable()
    try:
        for requires_grad in (False, True):
            peer.refuse_next = (2, "too many tickets")
            try:
                layer(x.requires_grad_(requires_grad))
            except kasmina.SessionError as refused:
                assert "too many tickets" in str(refused)
            else:
                pytest.fail("the peer refuses it")
            assert heap.free_bytes == heap.size
    finally:
        gc.enable()


def test_a_graft_that_ends_half_way_is_trained_as_what_it_is(client, monkeypatch):
    layer = SeededLayer(nn.Linear(3, 3), client, input_shape=(3,))
    seed = layer.seeds[0]
    seed.graft("linear", train=True)
    layer(torch.randn(2, 3)).sum().backward()

    def refuse(*_):
        raise kasmina.SessionError("not now", code="session.overloaded")

    monkeypatch.setattr(layer.remote, "set_alpha", refuse)
    with pytest.raises(kasmina.SessionError, match="not now"):
        seed.graft("linear", alpha=0.5, train=True)
    layer(torch.randn(2, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in seed.parameters())


def test_parameters_are_the_daemons_memory_and_outlive_a_prune(client):
    layer, _ = both(client, ["linear"], [1.0], "convex")
    seed = layer.seeds[0]
    held = dict(seed.named_parameters())
    with torch.no_grad():
        held["weight"].zero_()
        held["bias"].fill_(2.0)
        close(layer(torch.randn(2, 3)), torch.full((2, 3), 2.0))
    assert set(layer.state_dict()) == {"_extra_state", "host.weight", "host.bias", "seeds.0.weight", "seeds.0.bias"}
    state = {name: value if name == "_extra_state" else torch.ones_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    with torch.no_grad():
        close(layer(torch.ones(1, 3)), torch.full((1, 3), 4.0))
    seed.prune()
    gc.collect()
    assert list(seed.parameters()) == [] and seed.kernel is None and seed.state == "dormant"
    assert held["bias"].sum().item() == 3.0


def test_frozen_parameters_get_no_gradient(client):
    layer, _ = both(client, ["frozen", "linear"], [0.3, 0.3], "residual")
    layer.seeds[1].bias.requires_grad_(False)
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.seeds[0].weight.grad is None and layer.seeds[1].bias.grad is None
    assert layer.seeds[1].weight.grad is not None


def test_a_change_between_forward_and_backward_raises(client):
    layer, _ = both(client, ["linear"], [0.5], "convex")
    y = layer(torch.randn(2, 3))
    with torch.no_grad():
        layer.seeds[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_backward_is_refused_with_a_code(client):
    layer, _ = both(client, ["linear"], [0.5], "convex")
    y = layer(torch.randn(2, 3)).sum()
    y.backward(retain_graph=True)
    with pytest.raises(kasmina.TicketError) as caught:
        y.backward()
    assert caught.value.code == "ticket.spent"


def test_layers_in_a_row_pass_tensors_without_copies(client):
    first, _ = both(client, ["linear"], [0.5], "convex")
    second, _ = both(client, ["mlp"], [0.5], "convex")
    x = torch.randn(4, 3, requires_grad=True)
    middle = first(x)
    assert client.connection._base <= middle.data_ptr() < client.connection._base + len(client.connection._memory)
    second(middle).sum().backward()
    assert x.grad is not None and first.seeds[0].weight.grad is not None


def test_inputs_that_are_not_contiguous(client):
    layer, reference = both(client, ["linear"], [0.5], "convex")
    x = torch.randn(3, 4).t()
    y, y2 = layer(x), reference(x)
    close(y, y2)
    y.sum().backward()  # an expanded gradient
    y2.sum().backward()
    close(layer.seeds[0].weight.grad, reference.modules_[0].weight.grad)


def test_wrong_types_are_refused_clearly(client):
    layer, _ = both(client, ["linear"], [0.5], "convex")
    layer.host.double()
    with pytest.raises(kasmina.UsageError, match="float64"):
        layer(torch.randn(2, 3, dtype=torch.float64))
    with pytest.raises(kasmina.UsageError, match="shared"):
        layer.half()


def test_grafting_before_the_shape_is_known(client):
    layer = SeededLayer(nn.Linear(3, 3), client)
    with pytest.raises(kasmina.UsageError, match="run the layer once"):
        layer.seeds[0].graft("linear", alpha=0.5)
    with pytest.raises(kasmina.KernelError) as caught:
        layer.seeds[0].graft("unknown", alpha=0.5, input_shape=(3,))
    assert caught.value.code == "kernel.not_found"
    assert layer.seeds[0].kernel is None


def test_a_failing_seed_is_left_out_and_given_up(client):
    layer, reference = both(client, ["linear"], [0.5], "convex")
    failing = SeededLayer(layer.host, client, seeds=2, input_shape=(3,))
    failing.seeds[0].graft("linear", alpha=0.5)
    failing.seeds[1].graft("fails", alpha=0.5)
    x = torch.randn(2, 3)
    with pytest.warns(kasmina.SeedFailureWarning, match="kernel.runtime.*boom"):
        y = failing(x)
    close(y, reference(x))
    assert failing.last_failures == {1: "kernel.runtime"}
    y.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failing(x)
        failing(x)
        failing(x)
    assert failing.last_failures == {} and failing.seeds[1].alpha == 0.0


def test_names_that_a_seed_uses_itself(client):
    layer, reference = both(client, ["named"], [0.5], "convex")
    assert {name for name, _ in layer.seeds[0].named_parameters()} == {"alpha", "state"}
    assert layer.seeds[0].alpha == 0.5 and layer.seeds[0].kernel == "named"
    close(layer(torch.ones(2, 3)), reference(torch.ones(2, 3)))


def test_a_daemon_that_dies_leaves_the_host(peer, client):
    layer, _ = both(client, ["linear"], [0.5], "convex")
    x = torch.randn(2, 3)
    y = layer(x)
    peer.kernels["die"] = True
    with pytest.raises(kasmina.ConnectionLost), pytest.warns(RuntimeWarning, match="goes on without"):
        y.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x), layer.host(x))
    assert not layer.connected


def test_dropout_follows_pytorchs_generator(peer, client):
    layer, _ = both(client, ["linear"], [0.5], "convex")
    x = torch.randn(2, 3)
    for _ in range(2):
        torch.manual_seed(5)
        layer(x), layer(x)
    a, b, c, d = peer.seeds_seen
    assert (a, b) == (c, d) and a != b
    layer.eval()
    layer(x)
    assert peer.seeds_seen[-1] == 0


def test_memory_is_flat_over_many_steps(peer, client):
    layer, _ = both(client, ["mlp"], [0.5], "convex")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        layer(torch.randn(256, 3)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    assert client.connection._heap.free_bytes == client.connection._heap.size
    assert peer.tickets == {}


def test_a_crowded_arena_hands_out_ordinary_tensors(client):
    layer, _ = both(client, ["linear"], [0.5], "convex")
    held = client.connection._allocate(3 << 20)
    y = layer(torch.randn(4, 3))
    assert not client.connection._base <= y.data_ptr() < client.connection._base + len(client.connection._memory)
    y.sum().backward()
    del held


def test_training_from_several_threads(client):
    layer, reference = both(client, ["linear"], [0.5], "convex")
    failed = []

    def work():
        for _ in range(30):
            x = torch.randn(2, 3, requires_grad=True)
            x2 = x.detach().clone().requires_grad_()
            (g,) = torch.autograd.grad(layer(x).sum(), x)
            (g2,) = torch.autograd.grad(reference(x2).sum(), x2)
            if not torch.allclose(g, g2, rtol=1e-4):
                failed.append(g - g2)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
