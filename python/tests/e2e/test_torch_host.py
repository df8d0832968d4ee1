"""The layer's own transform in the daemon, beside the same module in this process."""

import copy
import gc
import io

import pytest
import torch
import torch._dynamo
from torch import nn

import kasmina
import kasmina.torch
from kasmina.torch._host import export
from .composition import alike, compare, near, pair, pass_of
from .conftest import settled
from .modules import IMAGE, TOKENS, Attention, ConvNorm, Drop, twin
from .test_equality import close
from .test_torch_roles import ADAMW, SGD


class Heads(nn.Module):
    """PyTorch's own attention."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attend(x, x, x, need_weights=False)[0]


HOSTS = {
    "conv": (lambda: nn.Conv2d(6, 6, 3, padding=1), ("conv-norm", "squeeze")),
    "norm": (lambda: nn.BatchNorm2d(6), ("conv-norm", "squeeze")),
    "conv-norm": (ConvNorm, ("squeeze", "conv-norm")),
    "linear": (lambda: nn.Linear(8, 8), ("mlp", "attention")),
    "layer-norm": (lambda: nn.LayerNorm(8), ("mlp", "attention")),
    "attention": (Attention, ("mlp", "attention")),
    "heads": (Heads, ("mlp", "attention")),
}


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("blend", ["convex", "residual", "multiply"])
def test_a_host_in_the_daemon_equals_itself(client, kind, blend):
    module, names = HOSTS[kind]
    layer, plain, shape = pair(client, names, blend, (0.3, 0.2), module=module, host="daemon")
    for train in (True, True, False):
        layer.train(train), plain.train(train)
        compare(layer, plain, torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("alphas", [(0.2, 0.3), (0.25, 0.75), (0.9, 0.6), (1.0, 0.0)])
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_sums_of_alphas_below_at_and_above_one(client, alphas, recompute):
    options = {"module": ConvNorm, "host": "daemon", "recompute": recompute}
    layer, plain, shape = pair(client, ("conv-norm", "squeeze"), "convex", alphas, **options)
    for train in (True, False):
        layer.train(train), plain.train(train)
        compare(layer, plain, torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("host", ["trainer", "daemon"])
def test_alpha_gradients_as_numbers_are_whole(client, host):
    layer, plain, shape = pair(client, ("mlp", "attention"), "convex", (0.3, 0.2), host=host, alpha_gradients=True)
    factors = [torch.tensor(alpha, requires_grad=True) for alpha in (0.3, 0.2)]
    plain.numbers = dict(enumerate(factors))
    compare(layer, plain, torch.randn(shape), torch.randn(shape))
    for seed, factor in zip(layer.seeds, factors):
        assert seed.alpha_grad == pytest.approx(factor.grad.item(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_an_optimizer_that_has_the_parameters_goes_on(client, optimizer):
    torch.manual_seed(1)
    module = ConvNorm()
    plain = copy.deepcopy(module)
    steps = optimizer(module.parameters()), optimizer(plain.parameters())

    def take(runs):
        x = torch.randn(IMAGE)
        for step, run in zip(steps, runs):
            step.zero_grad()
            run(x).square().mean().backward()
            step.step()

    take((module, plain))
    before = {name: id(value) for name, value in module.state_dict(keep_vars=True).items()}
    layer = kasmina.torch.SeededLayer(module, client, "layer", blend="residual", input_shape=IMAGE[1:], host="daemon")
    take((layer, plain))
    layer.seeds[0].graft("squeeze", alpha=0.5)
    k = twin("squeeze")
    for _ in range(4):
        take((layer, lambda x: plain(x) + 0.5 * k(x)))
    layer.seeds[0].prune()
    take((layer, plain))
    assert {name: id(value) for name, value in module.state_dict(keep_vars=True).items()} == before
    assert set(layer.state_dict()) == {"_extra_state", *(f"host.{name}" for name in plain.state_dict())}
    for (name, ours), truth in zip(module.state_dict().items(), plain.state_dict().values()):
        close(ours.float(), truth.float(), name, 1e-3)


def test_without_a_live_seed_the_module_runs_here(daemon, client):
    layer, _, shape = pair(client, ("mlp",), module=lambda: nn.Linear(8, 8), host="daemon")
    x = torch.randn(shape)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.host.weight, layer.host.bias))
    assert layer.stats()["synchronous"] == 0
    layer.seeds[0].alpha = 0.5
    layer(x)
    assert layer.stats()["synchronous"] == 1


def test_dropout_in_the_host_follows_torchs_generator(client):
    layer, _, shape = pair(client, ("drop",), "residual", (1.0,), module=Drop, host="daemon")
    x = torch.randn(shape)

    def run(seed):
        torch.manual_seed(seed)
        moved = x.clone().requires_grad_()
        y = layer(moved)
        y.square().sum().backward()
        return y.detach(), moved.grad

    (first, grad), (again, grad_again), (other, _) = run(1), run(1), run(2)
    assert torch.equal(first, again) and torch.equal(grad, grad_again) and not torch.equal(first, other)
    layer.eval()
    with torch.no_grad():
        close(layer(x), layer.host(x) + twin("drop").linear(x), "eval leaves nothing out")


def test_many_tickets_in_any_order_and_passes_that_do_not_wait(daemon, client):
    layer, plain, shape = pair(client, ("mlp", "attention"), "multiply", (0.3, 0.4), module=Attention, host="daemon")
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(6)]
    twins = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = [layer(x) for x in inputs[:3]] + [each.result() for each in [layer.submit(x) for x in inputs[3:]]]
    assert daemon.status()["sessions"][0]["tickets"] == 6
    for index in (4, 0, 5, 2, 1, 3):
        outputs[index].square().sum().backward()
        plain(twins[index]).square().sum().backward()
        near(inputs[index].grad, twins[index].grad, f"input {index}")
    alike(layer, plain)
    assert daemon.status()["sessions"][0]["tickets"] == 0


def test_recomputing_holds_next_to_nothing(daemon, client):
    held = {}
    for recompute in (False, True):
        layer, plain, shape = pair(
            client, ("attention",), "convex", (0.5,), module=Attention, host="daemon", recompute=recompute
        )
        x, gradient = torch.randn(shape), torch.randn(shape)
        compare(layer, plain, x, gradient)
        y = layer(x)
        held[recompute] = daemon.status()["sessions"][0]["saved_bytes"]
        y.backward(gradient)
    assert held[True] < held[False] / 10


def test_a_batch_of_any_size(client):
    layer, plain, shape = pair(client, ("mlp",), module=Attention, host="daemon")
    # The catalogue's takes no batch of one.
    artifact, sizes = export(twin("mlp"), TOKENS[1:], torch.float32)
    assert sizes == TOKENS[1:]
    layer.seeds[0].graft(client.offer(artifact), alpha=0.5)
    plain.numbers = {0: torch.tensor(0.5)}
    for batch in (3, 1, 7, 3):
        compare(layer, plain, torch.randn(batch, *shape[1:]), torch.randn(batch, *shape[1:]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_has_its_host_in_the_daemon(client, backend):
    torch._dynamo.reset()
    layer, plain, shape = pair(client, ("mlp", "attention"), "convex", (0.3, 0.2), module=Attention, host="daemon")
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    x, gradient = torch.randn(shape), torch.randn(shape)
    for train in (True, False):
        layer.train(train), plain.train(train), layer.zero_grad(), plain.zero_grad()
        (y, grad), (truth, grad_truth) = pass_of(compiled, x, gradient), pass_of(plain, x, gradient)
        close(y, truth, "output")
        near(grad, grad_truth, "input gradient")
        alike(layer, plain)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
def test_compiled_code_finds_the_host_here_when_the_daemon_is_gone(daemon, client):
    torch._dynamo.reset()
    layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=Attention, host="daemon")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, gradient = torch.randn(shape), torch.randn(shape)
    pass_of(compiled, x, gradient)
    daemon.kill()
    for _ in range(2):
        layer.zero_grad(), plain.zero_grad()
        (y, grad), (truth, grad_truth) = pass_of(compiled, x, gradient), pass_of(plain.host, x, gradient)
        close(y, truth, "the host alone")
        near(grad, grad_truth, "input gradient")
        for ours, other in zip(layer.host.parameters(), plain.host.parameters()):
            near(ours.grad, other.grad, "the host's gradient")
    torch._dynamo.reset()


def test_autocast_computes_in_the_layers_own_type(client):
    layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=lambda: nn.Linear(8, 8), host="daemon")
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    # Rounded once, to what the module itself gives there.
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, layer(x.bfloat16().float()).bfloat16())
    close(y.float(), plain(x.bfloat16().float()), "output", 1e-2)
    y.sum().backward()


@pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
def test_it_comes_back_with_the_daemon(daemon):
    with daemon.connect() as client:
        names, roles = ("conv-norm", "squeeze"), ("blend", "train")
        layer, plain, shape = pair(client, names, "convex", (0.5, 0.0), roles, module=ConvNorm, host="daemon")
        steps = [torch.optim.AdamW(model.parameters(), 1e-2, eps=1e-4) for model in (layer, plain)]
        identities = [id(each) for each in [*layer.parameters(), *layer.host.buffers()]]

        def step(alone=False):
            x, target = torch.randn(shape), torch.randn(shape)
            for model, optimizer in zip((layer, plain.host if alone else plain), steps):
                optimizer.zero_grad()
                (model(x) - target).square().mean().backward()
                optimizer.step()

        for _ in range(2):
            for _ in range(3):
                step()
            daemon.kill()
            settled(lambda: not client.connected)
            for _ in range(2):
                step(alone=True)
            daemon.process = daemon.start()
            settled(lambda: layer._arrived)
        for _ in range(3):
            step()
        assert layer.connected and layer._hosted.present and layer.stats()["synchronous"] == 9
        assert [id(each) for each in [*layer.parameters(), *layer.host.buffers()]] == identities
        alike(layer, plain, 3e-3, gradients=False)


@pytest.mark.filterwarnings("ignore::kasmina.ConnectionWarning")
def test_a_daemon_killed_before_it_looks_costs_no_step(daemon):
    with daemon.connect() as client:
        layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=Attention, host="daemon")
        layer(torch.randn(shape)).sum().backward()
        daemon.process.send_signal(19)
        settled(daemon.stopped)
        x = torch.randn(shape, requires_grad=True)
        pending = layer.submit(x)
        daemon.kill()
        y = pending.result()
        assert torch.equal(y, layer.host(x))
        y.sum().backward()
        assert x.grad is not None


def test_checkpoints_go_between_both_places(client, start):
    layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=Attention, host="daemon")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.01)
    held = io.BytesIO()
    torch.save(layer.state_dict(), held)
    x = torch.randn(shape)
    with start().connect() as other:
        for host in ("trainer", "daemon"):
            held.seek(0)
            restored = kasmina.torch.SeededLayer(Attention(), other, "again", 1, input_shape=TOKENS[1:], host=host)
            restored.load_state_dict(torch.load(held, weights_only=True))
            close(restored(x), layer(x), host)
    made = copy.deepcopy(layer)
    assert made.host_place == "daemon" and made.host.out.weight.data_ptr() != layer.host.out.weight.data_ptr()
    close(made(x), layer(x), "a copy")
    with torch.no_grad():
        made.host.out.bias.add_(1.0)
    close(made(x), layer(x) + 0.5, "a copy of its own")


class Transforms(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return torch.fft.rfft(self.fc(x)).real


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("module, kind, why", [
    (Branches, kasmina.UsageError, "cannot be exported"),
    (Transforms, kasmina.KernelError, "is refused"),
])
def test_a_module_that_cannot_go_there_says_why_and_what_to_do(client, module, kind, why):
    with pytest.raises(kind, match=why) as caught:
        kasmina.torch.SeededLayer(module(), client, "layer", input_shape=TOKENS[1:], host="daemon")
    assert 'host="trainer"' in str(caught.value)


def test_weights_that_are_not_finite_are_refused_by_the_rule(client):
    module = nn.Linear(8, 8)
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(kasmina.KernelError, match="weights.finite") as caught:
        kasmina.torch.SeededLayer(module, client, "layer", input_shape=TOKENS[1:], host="daemon")
    assert caught.value.code == "kernel.rejected"


def test_a_host_that_fails_refuses_its_pass_and_goes_on(client):
    layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=lambda: nn.Linear(8, 8), host="daemon")
    x = torch.randn(shape)
    with torch.no_grad():
        layer.host.weight.fill_(3e38)
    with pytest.raises(kasmina.KernelError) as caught:
        layer(x)
    assert caught.value.code == "kernel.non_finite"
    with torch.no_grad():
        layer.host.weight.copy_(plain.host.weight)
    compare(layer, plain, x, torch.randn(shape))


def test_an_evicted_host_is_offered_again(daemon, client):
    layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=lambda: nn.Linear(8, 8), host="daemon")
    kernel = layer._hosted.kernel
    with daemon.operator() as operator:
        report = operator.why(kernel)
        assert report["loads"][0]["place"] == "offer" and report["resident"] is not None
        assert operator.evict(kernel)["in_use"] == [kernel]
        layer.remote.prune(layer.remote.host)
        assert operator.evict(kernel)["evicted"] == [kernel]
    # As the client's own re-attaching does.
    grafted = layer.remote.graft(layer.remote.host, kernel, 0.0, TOKENS[1:])
    assert grafted.kernel == kernel
    client.withdraw(kernel)
    with daemon.operator() as operator:
        layer.remote.prune(layer.remote.host)
        operator.evict(kernel)
    with pytest.raises(kasmina.KernelError) as caught:
        layer.remote.graft(layer.remote.host, kernel, 0.0, TOKENS[1:])
    assert caught.value.code == "kernel.not_offered"


def test_an_offered_kernel_may_be_grafted_into_any_seed_and_into_no_shared_tier(daemon, client, kernels):
    kernel = client.offer((kernels / "mlp.pt2").read_bytes())
    layer, plain, shape = pair(client, ("mlp",))
    layer.seeds[0].graft(kernel, alpha=0.5)
    plain.numbers = {0: torch.tensor(0.5)}
    compare(layer, plain, torch.randn(shape), torch.randn(shape))
    with daemon.operator() as operator:
        tiers = {tier["name"]: tier for tier in operator.cache()["tiers"]}
        copies = operator.why(kernel)["copies"]
        assert not any(copy.get("digest") for copy in copies), copies
    assert tiers["sqlite"]["entries"] in (0, 1), "the catalogue's mlp alone"


def test_hosts_leave_nothing_behind(daemon, client):
    def once():
        layer, plain, shape = pair(client, ("mlp",), "convex", (0.5,), module=lambda: nn.Linear(8, 8), host="daemon")
        layer(torch.randn(shape)).sum().backward()

    once()
    gc.collect()
    client.prefetch([])
    descriptors = daemon.descriptors()
    for _ in range(10):
        once()
        gc.collect()
    client.prefetch([])
    settled(lambda: daemon.descriptors() <= descriptors)
    assert client.connection._heap.free_bytes == client.connection._heap.size
    assert client._offers._held == {}
