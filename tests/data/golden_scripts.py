"""Scripts that show what the language means: types as numbers, lists that grow, dictionaries, texts, names of a
module that come to hold another tensor. PyTorch decides; all but a few can be scripted only."""
from typing import Dict, Iterator, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_modules import Case


class Types(nn.Module):
    """A type is an int in scripts; each branch that is taken wrongly scales the result."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2 if x.dtype == torch.float32 else x
        y = y * 3 if x.dtype != torch.float64 else y
        y = y * 5 if x.dtype in (torch.float16, torch.float32) else y
        if x.dtype in [torch.int64, torch.bool]:
            y = y * 7
        wide = torch.float64 if x.dtype == torch.float32 else torch.float32
        return y.to(wide).to(x.dtype) * torch.tensor([[1.0, 0.5], [0.25, 2.0]], dtype=x.dtype).sum() + torch.tensor([True, False]).sum()


class Lists(nn.Module):
    """`+=` lengthens the list that others hold too, `+` makes another."""

    def forward(self, x: Tensor) -> Tensor:
        grown = [x]
        same = grown
        same += [x * 2, x * 3]
        other = grown + [x * 5]
        numbers = [4, 5, 6, 7, 8]
        numbers.insert(1, 9)
        last = numbers.pop()
        numbers.extend([1, 2])
        numbers.reverse()
        first = numbers.pop(0)
        factors = numbers[::2] + numbers[-2:0:-1]
        y = torch.stack(grown).sum(0) + len(other) * x + float(last + 10 * first)
        for factor in factors:
            y = y * 0.5 + factor
        return y


class Tables(nn.Module):
    """Dictionaries of tensors and numbers, in the order in which their keys came."""

    def forward(self, x: Tensor) -> Tensor:
        parts: Dict[str, Tensor] = {"a": x, "b": x * 2}
        parts["c"] = parts["a"] + parts["b"]
        parts["a"] = x * 0.5
        sizes: Dict[int, int] = {}
        for key in parts.keys():
            sizes[len(sizes)] = len(key)
        y = x * float(len(parts) + len(sizes))
        for key, part in parts.items():
            if key != "b":
                y = y + part
        if "d" in parts or 3 in sizes:
            y = y * 7
        for part in parts.values():
            y = torch.tanh(y) + part
        return y * float(sizes.get(1, 5)) + float(sizes.get(9, 5))


class Texts(nn.Module):
    """Numbers print as the interpreter prints them, which is not always Python's way."""

    def forward(self, x: Tensor) -> Tensor:
        name = "{}-{}".format(x.size(1), True) + "%d" % 3
        if name != "5-True3" or not name.startswith("5") or "True" not in name:
            raise RuntimeError("not " + name)
        if "{}".format([1, 2]) != "[1, 2]" or "{}".format(0.5) != "0.5" or "%s|%s" % (None, "a") != "None|a":
            raise RuntimeError("printed otherwise")
        return x * float(len(name))


class Rebound(nn.Module):
    """Who took the buffer before it was made another tensor keeps what it was; who writes in place changes it."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("ema", torch.zeros(width))
        self.register_buffer("peak", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        before, peak = self.ema, self.peak
        self.ema = self.ema * 0.9 + x.detach().mean(0) * 0.1
        after = self.ema
        self.ema += 0.5
        self.peak.copy_(torch.maximum(self.peak, x.detach().amax(0)))
        return x * before + after + self.ema + peak


class SharedNorm(nn.Module):
    """One batch norm twice: it counts two batches, and the second goes by what the first has left."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(self.first(self.norm(x))))


class Pair(NamedTuple):
    value: Tensor
    count: int


class Named(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(width)) for _ in range(2)])

    def scaled(self, x: Tensor, n: int) -> Pair:
        return Pair(x * self.scales[0] + self.scales[1], n + 1)

    def forward(self, x: Tensor) -> Tensor:
        pair = self.scaled(x, 2)
        value, count = pair
        return value * float(pair.count) + pair.value.tanh() * float(count)


class Encoder(nn.Module):
    """PyTorch's own layer, whose script asks a hundred questions before it computes."""

    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Masked(nn.Module):
    def __init__(self, width: int, length: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.register_buffer("hidden", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        mask: Optional[Tensor] = self.hidden
        y, weights = self.attention(x, x, x, attn_mask=mask)
        return y if weights is None else y + weights.sum(-1, keepdim=True) * x


def scripts() -> Iterator[Case]:
    yield Case("script_types", Types(), (5,), traced=False)
    yield Case("script_lists", Lists(), (5,), traced=False)
    yield Case("script_tables", Tables(), (5,), traced=False)
    yield Case("script_texts", Texts(), (5,), traced=False)
    yield Case("script_rebound", Rebound(5), (5,), traced=False)
    yield Case("script_shared_norm", SharedNorm(5), (5,), 4)
    yield Case("script_named", Named(5), (5,), traced=False)
    yield Case("script_encoder", Encoder(8), (4, 8))
    yield Case("script_masked", Masked(8, 4), (4, 8))
