"""Modules that show what programs do beside computing: share memory, write in place, keep constants, branch,
loop and raise. PyTorch decides what they mean; some can be scripted only, since tracing would fix a branch.
"""
from typing import Final, Iterator, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_modules import Case


class Tied(nn.Module):
    """One weight under two names, one module under two names, a buffer that is a turned view of a larger one."""

    def __init__(self, width: int):
        super().__init__()
        self.a, self.b = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.b.weight = self.a.weight
        self.norm = nn.LayerNorm(width)
        self.again = self.norm
        self.register_buffer("table", torch.randn(width + 2, width)[1 : width + 1].t())

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.b(torch.tanh(self.norm(self.a(x)))) @ self.table)


class Lifted(nn.Module):
    """Tensors that are neither parameter nor buffer, made in `__init__`, and buffers that are not saved."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("offset", torch.zeros(width), persistent=False)
        self.register_buffer("steps", torch.zeros(1))
        self.ramp = torch.arange(width, dtype=torch.float32) / width
        self.keep = torch.arange(width) % 3 != 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        y = torch.where(self.keep, x * self.scale + self.offset, self.ramp)
        return y * 0.5 + self.steps


class WrittenViews(nn.Module):
    """Writes through every kind of view, read back through others."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        y[:, 0] = 0.25
        y[:, 1:3] += x[:, 2:4]
        y[..., -1].mul_(2.0)
        turned = y.transpose(1, 2)
        turned[:, 1].copy_(x[:, :, 1])
        flat = y.view(-1)
        first, second = y[:, :2], y[:, 2:]
        second.sub_(first)
        y[:, ::2].neg_()
        y.unsqueeze(1).squeeze(1).add_(0.125)
        halves = y.view(y.shape[0], 2, y.shape[1] // 2, y.shape[2])
        halves[:, 1] *= halves[:, 0].clone()
        y.select(1, 3).fill_(0.75)
        y.narrow(2, 1, 2).clamp_(min=-0.5, max=0.5)
        z = torch.zeros_like(y)
        z[:] = y
        z.permute(0, 2, 1)[:, 0].zero_()
        return y + turned.transpose(1, 2) * 0.5 + flat.view_as(y) + z + first.sum(1, keepdim=True)


class WrittenInput(nn.Module):
    """A copy is written, the original is read; an accumulator grows in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        total = torch.zeros(x.shape[0], x.shape[2])
        for i in range(x.shape[1]):
            y[:, i] = y[:, i] * float(i + 1)
            total += y[:, i]
        y.clamp_(min=0.0).add_(x).mul_(x)
        return y + total.unsqueeze(1)


def scaled(x: Tensor, by: float = 2.0, shift: Optional[Tensor] = None) -> Tensor:
    if shift is not None:
        return x * by + shift
    return x * by


def clipped(x: Tensor, low: float, high: Optional[float] = None) -> Tensor:
    if high is None:
        return x.clamp(min=low)
    assert high > low, f"{low} is not below {high}"
    return x.clamp(low, high)


class Language(nn.Module):
    """The language that scripting keeps."""

    repeats: Final[int]
    kind: Final[str]

    def __init__(self, width: int):
        super().__init__()
        self.repeats, self.kind = 3, "soft"
        self.sizes: List[int] = [1, 2, 4]
        self.rates: Tuple[float, float] = (0.5, 0.25)
        self.limit: Optional[float] = None
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.named = nn.ModuleDict({"gate": nn.Linear(width, width), "norm": nn.LayerNorm(width)})
        self.pick = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.0))
        self.identity = nn.Identity()
        self.nothing: Optional[nn.Module] = None

    def halves(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        middle = x.size(-1) // 2
        return x[..., :middle], x[..., middle:]

    def early(self, x: Tensor, depth: int) -> Tensor:
        if depth <= 0:
            return x
        for size in self.sizes:
            if size > depth:
                return x * float(size)
        return x - 1.0

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise ValueError(f"expected three dimensions, got {x.dim()} with shape {x.shape}")
        for i, layer in enumerate(self.layers):
            x = x + layer(x) * self.rates[i % 2]
        for name, layer in self.named.items():
            if name == "gate":
                x = x * torch.sigmoid(layer(x))
            else:
                x = layer(x)
        steps = 0
        while steps < self.repeats:
            steps += 1
            if steps == 2:
                continue
            x = scaled(x, by=1.0 + 1.0 / steps)
        if self.training:
            x = x + 0.125
        elif self.kind in ["hard", "soft"]:
            x = x - 0.25
        parts: List[Tensor] = []
        for size in self.sizes[1:]:
            parts.append(self.early(x, size))
        parts += [clipped(x, -2.0), clipped(x, low=-1.0, high=2.0)]
        x = torch.stack(parts).mean(0)
        if self.limit is not None:
            x = x * self.limit
        left, right = self.halves(x)
        x = torch.cat([right, left], dim=-1)
        squares = [i * i for i in range(3)]
        total = 0
        for a, b in zip(squares, self.sizes):
            total += a * b
        b, t, c = x.shape
        y = x.reshape(b * t, c)
        if y.size(0) == b * t:
            y = y.view(b, t, -1)
        x = x * (1.5 if total > 3 else 0.5) + y * float(total) * 0.01
        x = scaled(x, shift=y.mean())
        return self.identity(self.pick(x)) if self.nothing is None else x


class Modes(nn.Module):
    """Both modes in one scripted archive, and running statistics kept by hand."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("mean", torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.training:
            center = x.mean(0)
            self.mean.mul_(0.9).add_(torch.ones_like(self.mean), alpha=0.1)
            x = x - center
        else:
            x = x - self.mean
        return F.softplus(x * self.weight)


def programs() -> Iterator[Case]:
    yield Case("tied", Tied(6), (3, 6))
    yield Case("lifted", Lifted(6), (4, 6))
    yield Case("written_views", WrittenViews(), (4, 6))
    yield Case("written_input", WrittenInput(), (3, 5))
    yield Case("modes", Modes(5), (5,), 4, traced=False)
    yield Case("language", Language(8), (3, 8), traced=False)
