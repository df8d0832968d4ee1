"""Gradients of everything, over blends, states, schedules, where the host runs, saved or run again, and orders of
backwards: beside the same composition in plain PyTorch, in numbers of 64 bits.

A layer has two seeds. The first is in the state that is looked at, the second follows the schedule, from pass to pass,
while three passes await their backward.
"""

import itertools

import pytest
import torch
from torch import nn

import kasmina.torch
from kasmina import Schedule
from .conftest import daemons, settled
from .modules import HALVES, TOKENS, name_of, twin
from .test_equality import blended
from .test_seed_life import formula

BLENDS = ("convex", "residual", "multiply")
STATES = ("training", "blending", "holding", "fossilized", "frozen", "learnt")
SCHEDULES = (None, "constant", "linear", "cosine", "sigmoid")
ORDERS = {"first in, first out": (0, 1, 2), "last in, first out": (2, 1, 0), "mixed": (1, 2, 0)}
#: Of the first seed: where it is, or where its own schedule begins and ends.
ALPHA, BLENDS_FROM, BLENDS_TO = 0.375, 0.25, 0.625
#: Of the second; in some passes both together pass 1, where a convex blend bends.
START, TARGET, STEPS = 0.125, 0.875, 4


class Shared:
    """A session that all cases share, and its layers: what one case leaves behind another would see."""

    def __init__(self, daemon, client):
        self.daemon, self.client, self.layers = daemon, client, {}

    def layer(self, blend, host, recompute, dtype=torch.float32):
        """A layer of a kind with two dormant seeds. One for all cases of its kind: a host that goes to the daemon is
        exported once."""
        kind = blend, host, recompute, dtype
        if kind not in self.layers:
            self.layers[kind] = kasmina.torch.SeededLayer(
                host_module(dtype), self.client, "layer", 2, blend, TOKENS[1:], True, dtype, host=host, recompute=recompute
            )
        for seed in self.layers[kind].seeds:
            seed.prune()
        return self.layers[kind]


@pytest.fixture(scope="module")
def shared(kernels):
    threads = torch.get_num_threads()
    # The tensors are small, and threads of PyTorch's own would wait for each other most of the time.
    torch.set_num_threads(1)
    with daemons(kernels) as begin:
        daemon = begin()
        with daemon.connect() as client:
            yield Shared(daemon, client)
    torch.set_num_threads(threads)


def host_module(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Linear(8, 8, dtype=dtype)


class Twin:
    """The composition, in plain PyTorch, of numbers of 64 bits with the values that the layer has."""

    def __init__(self, blend, names, dtype=torch.float32):
        self.blend = blend
        self.host = host_module(dtype).double()
        self.kernels = [twin(name).to(dtype).double() for name in names]

    def __call__(self, x, alphas, behind):
        """``alphas`` of both seeds; those of ``behind`` learn behind the layer."""
        h = self.host(x)
        live = [n for n in range(len(self.kernels)) if n not in behind]
        y = blended(self.blend, h, x, [alphas[n] for n in live], [self.kernels[n](x) for n in live])
        for n in behind:
            k = self.kernels[n](x.detach())
            y = y + (k - k.detach())
        return y


def near(ours, truth, what, tolerance):
    error = (ours.detach().double() - truth.detach()).norm()
    assert error <= tolerance * max(truth.norm().item(), 0.1), f"{what}: off by {error} of {truth.norm()}"


def enter(seed, state, kernel="mlp"):
    """Brings the first seed to where it is looked at. A way begins with the passes."""
    if state == "training":
        seed.graft(kernel, train=True)
    else:
        seed.graft(kernel, alpha=ALPHA)
    if state in ("fossilized", "frozen"):
        seed.fossilize(freeze=state == "frozen")
    if state == "learnt":
        seed.learn_alpha(ALPHA)


def alphas_of(state, schedule):
    """The blend factors of both seeds in the k-th of three passes."""
    first = {
        "training": lambda k: 0.0,
        "blending": lambda k: formula("linear", BLENDS_FROM, BLENDS_TO, 3, k),
        "fossilized": lambda k: 1.0,
        "frozen": lambda k: 1.0,
    }.get(state, lambda k: ALPHA)
    second = (lambda k: START) if schedule is None else lambda k: formula(schedule, START, TARGET, STEPS, k)
    return [(first(k), second(k)) for k in range(3)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("blend", BLENDS)
def test_every_gradient_is_that_of_the_composition(shared, blend, state, schedule):
    for host, recompute in itertools.product(("trainer", "daemon"), (False, True)):
        layer = shared.layer(blend, host, recompute)
        enter(layer.seeds[0], state)
        layer.seeds[1].graft("attention", alpha=START)
        plain = Twin(blend, ("mlp", "attention"))
        for order in ORDERS.values():
            case = f"{host}, {'run again' if recompute else 'saved'}, {order}"
            if state == "blending":
                layer.seeds[0].blend(Schedule("linear", 3, target=BLENDS_TO), alpha=BLENDS_FROM)
            if schedule is not None:
                layer.seeds[1].blend(Schedule(schedule, STEPS, target=TARGET), alpha=START)
            expected = {"training": "training", "blending": "blending", "frozen": "fossilized"}
            assert layer.seeds[0].state == expected.get(state, state if state == "fossilized" else "holding"), case
            assert layer.seeds[1].state == ("holding" if schedule is None else "blending"), case
            there_and_back(layer, plain, state, alphas_of(state, schedule), order, case)
    settled(lambda: shared.daemon.status()["sessions"][0]["tickets"] == 0)


def there_and_back(layer, plain, state, alphas, order, case, dtype=torch.float32, tolerance=1e-4):
    """Three passes, then their backwards in an order; every output and gradient of both."""
    layer.zero_grad()
    behind = (0,) if state == "training" else ()
    learnt = torch.tensor(ALPHA, dtype=torch.float64, requires_grad=True) if state == "learnt" else None
    frozen = state == "frozen"
    for module in (plain.host, *plain.kernels):
        module.zero_grad()
    plain.kernels[0].requires_grad_(not frozen)
    passes = []
    for k, pair in enumerate(alphas):
        generator = torch.Generator().manual_seed(10 + k)
        x = torch.randn(TOKENS, generator=generator).to(dtype).requires_grad_()
        gradient = torch.randn(TOKENS, generator=generator).to(dtype)
        own = x.detach().double().requires_grad_()
        # As the daemon has them, in numbers of 32 bits.
        factors = [torch.tensor(alpha, dtype=torch.float32).double().requires_grad_() for alpha in pair]
        factors[0] = factors[0] if learnt is None else learnt
        y, truth = layer(x), plain(own, factors, behind)
        near(y, truth, f"{case}: output {k}", tolerance)
        passes.append((x, gradient, y, own, factors, truth))
    for k in order:
        x, gradient, y, own, factors, truth = passes[k]
        before = 0.0 if learnt is None or learnt.grad is None else learnt.grad.item()
        y.backward(gradient)
        truth.backward(gradient.double())
        near(x.grad, own.grad, f"{case}: gradient of x {k}", tolerance)
        for n, (seed, factor) in enumerate(zip(layer.seeds, factors)):
            if n not in behind:
                of_factor = factor.grad.item() - (before if factor is learnt else 0.0)
                # A sum over everything, in which much cancels out.
                scale = max(abs(of_factor), gradient.double().norm().item())
                assert abs(seed.alpha_grad - of_factor) <= tolerance * scale, f"{case}: factor {n} of pass {k}"
    for (name, ours), other in zip(layer.host.named_parameters(), plain.host.parameters()):
        near(ours.grad, other.grad, f"{case}: host {name}", tolerance)
    for n, (seed, kernel) in enumerate(zip(layer.seeds, plain.kernels)):
        parameters = dict(seed.named_parameters())
        for name, other in kernel.named_parameters():
            if frozen and n == 0:
                assert parameters[name].grad is None and not parameters[name].requires_grad, case
            else:
                near(parameters[name].grad, other.grad, f"{case}: seed {n} {name}", tolerance)
    if learnt is not None:
        near(layer.seeds[0].alpha_parameter.grad, learnt.grad, f"{case}: the learnt factor", tolerance)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "run again"])
@pytest.mark.parametrize("host", ["trainer", "daemon"])
@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_halves_learn_behind_and_in_the_blend(shared, dtype, host, recompute, blend):
    name, tolerance = f"mlp-{name_of(dtype)}", {torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    for state in ("training", "holding", "learnt"):
        layer = shared.layer(blend, host, recompute, dtype)
        enter(layer.seeds[0], state, name)
        layer.seeds[1].graft(name, alpha=START)
        plain = Twin(blend, ("mlp", "mlp"), dtype)
        there_and_back(layer, plain, state, alphas_of(state, None), (1, 2, 0), state, dtype, tolerance)
