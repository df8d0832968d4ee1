"""What a layer computes, in plain PyTorch, and both side by side."""

import copy

import torch
from torch import nn

import kasmina.torch
from .modules import INPUTS, twin
from .test_equality import blended, close


class Composition(nn.Module):
    """A host and its kernels, each blended by a factor or learning behind the output. A factor that is a parameter is
    learnt."""

    def __init__(self, host, blend, kernels, alphas, roles):
        super().__init__()
        self.host, self.blend, self.roles = host, blend, roles
        self.kernels = nn.ModuleList(kernels)
        self.alphas = nn.ParameterDict()
        self.numbers = dict(enumerate(torch.tensor(float(alpha)) for alpha in alphas))

    def learn(self, index, value):
        self.alphas[str(index)] = nn.Parameter(torch.tensor(float(value)))

    def alpha(self, index):
        return self.alphas[str(index)] if str(index) in self.alphas else self.numbers[index]

    def forward(self, x):
        h = self.host(x)
        live = [
            (self.alpha(index), kernel)
            for index, (kernel, role) in enumerate(zip(self.kernels, self.roles))
            if role == "blend" and (str(index) in self.alphas or self.alpha(index) > 0)
        ]
        y = h
        if live:
            alphas, outputs = [alpha for alpha, _ in live], [kernel(x) for _, kernel in live]
            if sum(alpha.item() for alpha in alphas) > 0 or self.blend != "convex":
                y = blended(self.blend, h, x, alphas, outputs)
            else:
                y = (1 - sum(alphas)) * h + sum(a * k for a, k in zip(alphas, outputs))
        if self.training:
            for kernel, role in zip(self.kernels, self.roles):
                if role == "train":
                    k = kernel(x.detach())
                    y = y + (k - k.detach())
        return y


def host_for(shape):
    return nn.Conv2d(shape[1], shape[1], 3, padding=1) if len(shape) == 4 else nn.Linear(shape[-1], shape[-1])


def pair(client, names, blend="convex", alphas=None, roles=None, module=None, name="layer", **options):
    """A layer with kernels, and its composition with the same weights."""
    shape = INPUTS[names[0]][1]
    alphas, roles = alphas or [0.0] * len(names), roles or ["blend"] * len(names)
    torch.manual_seed(1)
    module = host_for(shape) if module is None else module()
    plain = Composition(copy.deepcopy(module), blend, [twin(each) for each in names], alphas, roles)
    layer = kasmina.torch.SeededLayer(
        module, client, name, len(names), blend, input_shape=shape[1:], **options
    )
    for seed, kernel, alpha, role in zip(layer.seeds, names, alphas, roles):
        seed.graft(kernel, alpha=alpha, train=role == "train")
    return layer, plain, shape


def learn(layer, plain, index, value):
    plain.learn(index, value)
    return layer.seeds[index].learn_alpha(value)


def tensors(layer, plain):
    """Parameters and buffers of both, by name."""
    for (name, ours), other in zip(layer.host.state_dict(keep_vars=True).items(), plain.host.state_dict(keep_vars=True).values()):
        yield f"host {name}", ours, other
    for index, (seed, kernel) in enumerate(zip(layer.seeds, plain.kernels)):
        ours = {**dict(seed.named_parameters()), **dict(seed.named_buffers())}
        for name, other in kernel.state_dict(keep_vars=True).items():
            yield f"seed {index} {name}", ours[name], other
    for index, other in plain.alphas.items():
        yield f"alpha {index}", layer.seeds[int(index)].alpha_parameter, other


def alike(layer, plain, tolerance=1e-4, gradients=True):
    """Every parameter, gradient and buffer of both is the same."""
    for name, ours, other in tensors(layer, plain):
        close(ours.detach().float(), other.detach().float(), name, tolerance)
        if gradients and other.grad is not None:
            assert ours.grad is not None, name
            near(ours.grad, other.grad, f"{name}'s gradient", tolerance)


def near(ours, truth, what, tolerance=1e-4):
    """As ``close``, for what may be nothing but rounding errors."""
    error = (ours - truth).norm()
    assert error < tolerance * max(truth.norm().item(), 0.1), f"{what}: {ours} {truth}"


def pass_of(run, x, gradient):
    """Output and the input's gradient of one pass there and back."""
    x = x.detach().clone().requires_grad_()
    y = run(x)
    y.backward(gradient)
    return y.detach(), x.grad


def compare(layer, plain, x, gradient, tolerance=1e-4):
    """One pass of both, there and back."""
    for model in (layer, plain):
        model.zero_grad()
    (y, grad), (truth, grad_truth) = pass_of(layer, x, gradient), pass_of(plain, x, gradient)
    close(y, truth, "output", tolerance)
    near(grad, grad_truth, "input gradient", tolerance)
    alike(layer, plain, tolerance)
