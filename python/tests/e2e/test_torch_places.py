"""Parameters stay where the daemon reads them, whatever people do to them."""

import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import kasmina
import kasmina.torch
from .composition import compare, near, pair

PLACES = ("trainer", "daemon")


def assign(parameters):
    for parameter in parameters:
        parameter.data = torch.zeros_like(parameter) + 0.1


def from_vector(parameters):
    parameters = list(parameters)
    vector = torch.nn.utils.parameters_to_vector(parameters).detach()
    torch.nn.utils.vector_to_parameters(vector * 0.5, parameters)


def swap_twice(parameters):
    """An average of weights, swapped in for an evaluation and out again."""
    for parameter in parameters:
        average = torch.full_like(parameter, 0.2)
        parameter.data, average = average, parameter.data
        parameter.data, average = average, parameter.data


@pytest.mark.filterwarnings("ignore:parameters that a daemon reads were made parts")
@pytest.mark.parametrize("change", (assign, from_vector, swap_twice))
@pytest.mark.parametrize("host", PLACES)
def test_values_that_come_by_data_are_the_daemons_too(client, host, change):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    for _ in range(2):
        for model in (layer, plain):
            change(model.parameters())
        compare(layer, plain, torch.randn(shape), torch.randn(shape))
        optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (layer, plain)]
        for optimizer in optimizers:
            optimizer.step()
    compare(layer, plain, torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("host", PLACES)
def test_an_average_that_is_swapped_in_keeps_both(client, host):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    x = torch.randn(shape)
    averages = [[torch.full_like(parameter, 0.2) for parameter in model.parameters()] for model in (layer, plain)]
    for _ in range(4):
        for model, average in zip((layer, plain), averages):
            for index, parameter in enumerate(model.parameters()):
                parameter.data, average[index] = average[index], parameter.data
        compare(layer, plain, x, torch.randn(shape))
        for ours, truth in zip(averages[0], averages[1]):
            near(ours, truth, "what was swapped out")


@pytest.mark.parametrize("host", PLACES)
def test_sharpness_aware_minimisation(client, host):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    batches = [torch.randn(shape) for _ in range(3)]
    for model in (layer, plain):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x in batches:
            model(x).square().mean().backward()
            kept = {}
            with torch.no_grad():
                for parameter in model.parameters():
                    kept[parameter] = parameter.data.clone()
                    parameter.add_(0.05 * parameter.grad / parameter.grad.norm())
            optimizer.zero_grad()
            model(x).square().mean().backward()
            for parameter in model.parameters():
                parameter.data = kept[parameter]
            optimizer.step()
            optimizer.zero_grad()
    compare(layer, plain, batches[0], torch.randn(shape))


@pytest.mark.parametrize("host", PLACES)
def test_a_storage_that_is_shared_with_another_process(client, host):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    # What multiprocessing's queues do to what they send.
    for tensor in layer.state_dict().values():
        tensor.share_memory_()
    for model in (layer, plain):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
    compare(layer, plain, torch.randn(shape), torch.randn(shape))
    before = [parameter.data_ptr() for parameter in layer.seeds.parameters()]
    with pytest.raises(kasmina.UsageError, match="shared with other processes"):
        layer.share_memory()
    assert before == [parameter.data_ptr() for parameter in layer.seeds.parameters()]


def zeros(layer, part):
    return {name: torch.zeros_like(p) for name, p in layer.named_parameters() if name.startswith(part)}


def test_other_parameters_for_one_call(client):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host="daemon")
    x = torch.randn(shape)
    before = copy.deepcopy(layer.host.state_dict())
    for _ in range(2):
        y = torch.func.functional_call(layer, zeros(layer, "host"), (x,))
        near(y, torch.func.functional_call(plain, zeros(plain, "host"), (x,)), "without the host's weights")
        compare(layer, plain, x, torch.randn(shape))
    for name, tensor in before.items():
        assert torch.equal(layer.host.state_dict()[name], tensor), name
    # Another pass's weights lie where this one's backward would read.
    weights = {name: tensor + 0.1 for name, tensor in zeros(layer, "host").items()}
    y = torch.func.functional_call(layer, {n: t.requires_grad_() for n, t in weights.items()}, (x,))
    layer(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.raises(kasmina.UsageError, match="up.weight of seed 0 of layer 'layer' is another tensor"):
        torch.func.functional_call(layer, zeros(layer, "seeds"), (x,))
    compare(layer, plain, x, torch.randn(shape))


def test_a_host_whose_parameters_are_replaced_and_put_back(client):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5], host="daemon")
    x = torch.randn(shape)
    for model in (layer, plain):
        kept = model.host.weight
        model.host.weight = nn.Parameter(torch.zeros_like(kept))
        model(x)
        model.host.weight = kept
    compare(layer, plain, x, torch.randn(shape))
    old = layer.host.weight
    value = old.detach().clone()
    layer.load_state_dict({n: t * 0 if n.startswith("host") else t for n, t in layer.state_dict().items()}, assign=True)
    layer(x)
    assert torch.equal(old, value) and not layer.host.weight.any()


def table(seed):
    seed.up._parameters["weight"] = nn.Parameter(torch.zeros(16, 8))


def buffer(seed):
    seed.up._parameters.pop("bias")


@pytest.mark.parametrize("change", (table, buffer))
def test_what_is_replaced_in_the_tables_is_missed(client, change):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5])
    change(layer.seeds[0])
    for call in (layer, lambda x: layer.submit(x).result(), torch.compile(layer, backend="eager")):
        with pytest.raises(kasmina.UsageError, match="of seed 0 of layer 'layer' is (another tensor|gone)"):
            call(torch.randn(shape))


REFUSED = {
    "a child": lambda up: setattr(up, "0", nn.Linear(8, 16)),
    "a buffer": lambda up: up.register_buffer("mask", torch.ones(8)),
    "prune": lambda up: torch.nn.utils.prune.l1_unstructured(up, "weight", amount=0.5),
    "spectral norm": lambda up: torch.nn.utils.parametrizations.spectral_norm(up, "weight"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_seed_is_not_rebuilt(client, what):
    layer, plain, shape = pair(client, ["mlp"], "convex", [0.5])
    with pytest.raises(kasmina.UsageError):
        REFUSED[what](layer.seeds[0].up)
    compare(layer, plain, torch.randn(shape), torch.randn(shape))


def test_a_seeds_modules_and_buffers_are_not_replaced(client):
    layer, plain, shape = pair(client, ["conv-norm"], "convex", [0.5])
    seed = layer.seeds[0]
    with pytest.raises(kasmina.UsageError, match="cannot be put into a grafted seed"):
        seed.conv = nn.Conv2d(6, 6, 3)
    with pytest.raises(kasmina.UsageError, match="running_mean.copy_"):
        seed.norm.running_mean = torch.full((6,), 50.0)
    seed.norm._buffers["running_mean"] = torch.full((6,), 50.0)
    plain.kernels[0].norm.running_mean.fill_(50.0)
    for model in (layer, plain):
        model.eval()
    near(layer(torch.ones(shape)), plain(torch.ones(shape)), "with another mean")
    with pytest.raises(kasmina.UsageError, match="laid out anew"):
        layer.to(memory_format=torch.channels_last)
