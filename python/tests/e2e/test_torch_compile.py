"""torch.compile around layers: one graph, the same numbers, and grafts that go on working."""

import gc

import pytest
import torch
import torch._dynamo
from torch import nn

import kasmina
import kasmina.torch
from .modules import TOKENS, twin
from .test_equality import blended, close


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    def __init__(self, client, blend="convex", **options):
        super().__init__()
        torch.manual_seed(1)
        self.before = nn.Linear(8, 8)
        self.first = kasmina.torch.SeededLayer(
            nn.Linear(8, 8), client, "first", 2, blend, TOKENS[1:], **options
        )
        self.second = kasmina.torch.SeededLayer(
            nn.Linear(8, 8), client, "second", 1, blend, TOKENS[1:], **options
        )

    def forward(self, x):
        return self.second(self.first(torch.relu(self.before(x)))) * 2.0


def grafted(client, blend="convex", **options):
    model = Model(client, blend, **options)
    model.first.seeds[0].graft("mlp", alpha=0.4)
    model.first.seeds[1].graft("attention", alpha=0.3)
    model.second.seeds[0].graft("mlp", alpha=0.5)
    return model


def gradients(model, run, x, gradient):
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = run(x)
    y.backward(gradient)
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize(
    "blend, backend",
    # One blend is enough for the slow compiler.
    [("convex", "aot_eager"), ("residual", "aot_eager"), ("multiply", "aot_eager"), ("convex", "inductor")],
)
def test_a_compiled_model_equals_the_eager_one(client, blend, backend):
    model = grafted(client, blend, alpha_gradients=True)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x, gradient = torch.randn(TOKENS), torch.randn(TOKENS)
    for train in (True, False):
        model.train(train)
        truth = gradients(model, model, x, gradient)
        alphas = [seed.alpha_grad for layer in (model.first, model.second) for seed in layer.seeds]
        ours = gradients(model, compiled, x, gradient)
        for index, (a, b) in enumerate(zip(ours, truth)):
            close(a, b, f"{index} of {len(truth)}")
        assert [seed.alpha_grad for layer in (model.first, model.second) for seed in layer.seeds] == pytest.approx(
            alphas, rel=1e-3, abs=1e-5
        )


def test_the_number_of_graphs_and_of_recompilations(client):
    model = Model(client)
    x = torch.randn(TOKENS)
    explained = torch._dynamo.explain(model)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(x), compiled(x)
    assert counter.frame_count == 1
    # A graft changes what is to be computed: compiled anew, once for each layer's new set of live seeds.
    model.first.seeds[0].graft("mlp", alpha=0.4)
    compiled(x), compiled(x)
    assert counter.frame_count == 2
    close(compiled(x), model(x), "after a graft")
    # Another blend factor, other weights and another kernel with the same tables are no reason.
    model.first.seeds[0].alpha = 0.7
    with torch.no_grad():
        model.first.seeds[0].state_dict()["up.weight"].mul_(2.0)
    close(compiled(x), model(x), "after changes")
    assert counter.frame_count == 2
    model.first.seeds[0].prune()
    close(compiled(x), model(x), "after a prune")
    assert counter.frame_count <= 3
    explained = torch._dynamo.explain(grafted(client))(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_a_graft_without_waiting_arrives_in_compiled_code(client):
    model = Model(client)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(TOKENS)
    compiled(x)
    arrived = []
    seed = model.first.seeds[0]
    seed.graft("mlp", alpha=0.5, wait=False, on_live=arrived.append)
    for _ in range(100000):
        compiled(x)
        if arrived:
            break
    assert arrived == [seed] and seed.load_error is None
    close(compiled(x), model(x), "after it arrived")
    y = model.first(x)
    close(y, blended("convex", model.first.host(x), x, [torch.tensor(0.5)], [twin("mlp")(x)]), "is blended")


def test_two_calls_of_one_layer_are_two_passes(client):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, "layer", 1, "residual", TOKENS[1:])
    layer.seeds[0].graft("drop", alpha=1.0)
    compiled = torch.compile(lambda x: (layer(x), layer(x)), backend="aot_eager", fullgraph=True)
    x = torch.randn(TOKENS, requires_grad=True)
    one, two = compiled(x)
    assert not torch.equal(one, two), "each pass has a dropout mask of its own"
    (one.sum() + two.sum()).backward()
    assert x.grad.isfinite().all()
    torch.manual_seed(3)
    again = compiled(x)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(again, compiled(x)))


def test_tickets_of_compiled_code_go_back(daemon, client):
    model = grafted(client)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(TOKENS)

    def tickets():
        return sum(session["tickets"] for session in daemon.status()["sessions"])

    y = compiled(x)
    assert tickets() == 2
    del y
    gc.collect()
    with torch.no_grad():
        compiled(x)
    assert tickets() == 0
    compiled(x).sum().backward()
    assert tickets() == 0 and not kasmina.torch._ops._passes


def test_compiled_training_stays_equal(client):
    model = grafted(client)
    plain = grafted(client)
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-2) for m in (model, plain)]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(10):
        torch.manual_seed(step)
        x, target = torch.randn(2 + step % 3, *TOKENS[1:]), None
        for run, optimizer in zip((compiled, plain), optimizers):
            optimizer.zero_grad()
            (run(x) ** 2).mean().backward()
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters()):
        close(a, b, name)


def test_a_daemon_that_dies_leaves_compiled_code_the_host(daemon, client):
    model = grafted(client)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(TOKENS)
    y = compiled(x)
    daemon.kill()
    with pytest.warns(RuntimeWarning, match="goes on without"), pytest.raises(kasmina.ConnectionLost):
        y.sum().backward()
    truth = model.second.host(model.first.host(torch.relu(model.before(x)))) * 2.0
    close(compiled(x), truth, "the host alone")
