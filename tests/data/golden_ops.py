"""Modules for the ops that ordinary blocks seldom hold: rounding, indices, windows, sums along a dimension."""
from typing import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden_modules import Case


class Elementary(nn.Module):
    """Short functions of one or two tensors. The factors keep them apart in the sum of gradients."""

    def forward(self, x: Tensor) -> Tensor:
        p = x.abs() + 0.5
        return torch.stack(
            [
                torch.expm1(0.5 * x), torch.exp2(x), torch.log10(p), torch.log2(p), torch.log1p(p), torch.tan(0.3 * x),
                torch.erf(x), torch.erfc(x), F.softsign(x), F.tanhshrink(x), F.threshold(x, 0.2, -1.0),
                F.hardshrink(x, 0.3), F.softshrink(x, 0.3), torch.logit(torch.sigmoid(x)), torch.hypot(x, p),
                torch.logaddexp(x, p), F.logsigmoid(x), F.mish(x), torch.square(x), torch.reciprocal(p),
                torch.sin(x) * torch.cos(x), F.selu(x), F.celu(x, 0.7), torch.nan_to_num(x), torch.rsqrt(p),
                torch.addcmul(x, p, x, value=0.3), torch.addcdiv(x, x, p, value=0.2), torch.lerp(x, p, 0.4),
                torch.subtract(x, p, alpha=2), torch.rsub(x, 1.5), 2.0**x, x.clamp(min=p - 1.0, max=p),
            ],
            dim=1,
        )


class Rounding(nn.Module):
    """What has steps gives gradients of zeros, and what has none in PyTorch gives none."""

    def __init__(self, width: int):
        super().__init__()
        self.stepped, self.still = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.rest, self.compared = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x * (1.0 + torch.floor(self.rest * 3.0)) + torch.ceil(x) + torch.round(x) * x + torch.trunc(3 * x) + torch.frac(x)
        y = y + torch.sign(x) * x + torch.remainder(x, 0.7) + torch.fmod(x, 0.7) + torch.remainder(x, self.rest.abs() + 1.0)
        y = y + torch.div(x, 0.3, rounding_mode="floor") * x + torch.div(x, 0.3, rounding_mode="trunc")
        return y * self.still.detach() + (self.compared > x).to(x.dtype) + x.argmax(dim=1, keepdim=True).to(x.dtype)


class Indices(nn.Module):
    def __init__(self, rows: int, width: int):
        super().__init__()
        self.table = nn.Embedding(7, width, padding_idx=2)
        self.register_buffer("order", torch.tensor([2, 0, 3, 3, 1]))
        self.register_buffer("columns", torch.tensor([0, 5, 5, 2, 1]))

    def forward(self, x: Tensor) -> Tensor:
        largest = x.argmax(dim=2)  # [N, rows], an index that the data decides
        picked = x[:, self.order, self.columns].unsqueeze(2)
        rows = torch.index_select(x, 1, self.order)
        gathered = torch.gather(x, 2, largest.unsqueeze(2)).expand(-1, -1, x.size(2))
        return torch.cat(
            [self.table(largest), self.table(self.order + 1).expand(x.size(0), -1, -1) * picked, rows, gathered,
             x.flip([1, 2]), x.flip([-1]), torch.roll(x, 2, 2), x.argmin(1, keepdim=True).to(x.dtype) * x],
            dim=1,
        )


class Windows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)).flatten(1)
        windows = x.unfold(2, 3, 2).flatten(1)
        shuffled = F.pixel_unshuffle(x, 2).flatten(1)
        diagonal = torch.diagonal(x, 1, 2, 3).flatten(1)
        return torch.cat([columns, windows, shuffled, diagonal, x.tile(1, 2, 1, 1).flatten(1)], dim=1)


class Sizes(nn.Module):
    """Interpolation to sizes that are no multiples."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2)
        return torch.cat(
            [
                F.interpolate(x, size=(5, 3)).flatten(1),
                F.interpolate(x, scale_factor=1.7).flatten(1),
                F.interpolate(x, size=(3, 7), mode="nearest-exact").flatten(1),
                F.interpolate(0.2 * x, size=(5, 7), mode="bicubic").flatten(1),
                F.interpolate(0.2 * x, size=(3, 9), mode="bicubic", align_corners=True).flatten(1),
                F.interpolate(x, scale_factor=1.3, mode="bilinear").flatten(1),
                F.interpolate(rows, size=11, mode="linear").flatten(1),
                F.interpolate(rows, size=7).flatten(1),
            ],
            dim=1,
        )


class Accumulated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, dim=[2])
        variance, _ = torch.var_mean(x, dim=[1], unbiased=False, keepdim=True)
        parts = [
            torch.cumsum(x, dim=1), torch.cumsum(x, dim=-1), x * variance,
            (x.prod(dim=2) + torch.logsumexp(x, dim=2)).unsqueeze(2) * x, (deviation * mean).unsqueeze(2) * x,
            torch.linalg.vector_norm(x, dim=[2], keepdim=True) * x, torch.norm(x, 3, dim=2, keepdim=True) * x, torch.norm(x, 1, dim=1, keepdim=True) * x,
            torch.linalg.vector_norm(x, float("inf"), dim=[2], keepdim=True) * x, F.normalize(x, dim=-1), x.tril(1) + x.triu(-1),
        ]
        return torch.cat(parts, dim=1)


class Einsums(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight, self.core = nn.Parameter(torch.zeros(width, 3)), nn.Parameter(torch.zeros(3, width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bij,jk->bik", x, self.weight)
        gram = torch.einsum("bik,bjk->bij", y, y)
        core = torch.einsum("bim,kmn,bin->bik", x, self.core, x)
        total = torch.einsum("bij->b", x).reshape(-1, 1, 1)
        return torch.cat([y.transpose(1, 2), gram, core.transpose(1, 2) * total, torch.einsum("bij->bji", y)], dim=1)


class Turned(nn.Module):
    """In place, these change how a tensor is looked at and no element; other views stay as they were."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        row = y[:, 0]
        y.transpose_(1, 2)
        y[:, 1:3] = 0.25
        y.unsqueeze_(1)
        y.squeeze_(1)
        row.mul_(2.0)
        square = x[0] * 0.5
        square.t_()
        square[0].add_(x[0, :, 1])
        rows = y.swapaxes_(0, 1).swapdims_(0, 1)
        return torch.cat([rows, y.squeeze(()), square.expand(x.size(0), -1, -1), row.unsqueeze(1)], dim=1)


class Strided(nn.Module):
    """Writes through views that are cut with a stride, and through an einsum that only turns."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.5
        torch.diagonal(y, 1, 1, 2).mul_(2.0)
        diagonal = y.diagonal(0, 2, 1)
        y[:, 0].add_(1.0)
        return torch.cat([y, diagonal.unsqueeze(1) * x, torch.einsum("bij->bji", y)], dim=1)


class Integers(nn.Module):
    """Integers stay integers, exact where float32 is not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("big", torch.tensor([2**24 + 1, 3 - 2**24, 2**40 + 7, -5, 2, 7]))

    def forward(self, x: Tensor) -> Tensor:
        k = self.big
        high, at = k.max(0)
        low, place = k.view(2, 3).min(dim=1)
        parts = [
            k.abs() % 1000, torch.relu(k) % 1000, k.square() % 1000, k.clamp_min(3) % 1000, F.relu6(k), F.hardtanh(k, -3.0, 4.0),
            k.clamp(min=-4, max=6), torch.absolute(k) % 1000, (high % 1000 + at).expand(6), (low % 1000 + place).repeat(3),
            (k.amax([0]) % 1000).expand(6), (k.view(2, 3).amin([1], keepdim=True) % 1000).expand(2, 3).reshape(6), k.max().sub(k.min()).remainder(1000).expand(6),
            k.cumsum(0) % 1000, (k + 9007199254740993) % 1000, k.argmax(0).expand(6), (k > 2).to(torch.int32).argmax(0).expand(6),
        ]
        return torch.stack([part.to(x.dtype) for part in parts], dim=1).unsqueeze(0) * x.unsqueeze(2)


class Promoted(nn.Module):
    """What a number, a known tensor and a mask become beside each other."""

    def forward(self, x: Tensor) -> Tensor:
        ramp, mask = torch.arange(x.size(1)), x > 0
        parts = [
            x + ramp * 2.5, x * (mask + 1.5), x - ramp / 3.0, x * (ramp - 0.5), x * (mask + ramp), x * (x.size(1) * 0.25),
            x * torch.tensor(5).to(torch.bool).to(torch.float32), x * torch.tensor(2.7).to(torch.int64), x * torch.tensor(0.1).to(torch.float16).to(torch.float32),
            x * torch.tensor(2.0), x * (mask + (x < 1)), x.clamp(torch.tensor(-0.5), torch.tensor(0.5)), x.clamp(min=-0.5).clamp_max(0.5),
            torch.zeros_like(x).fill_(x.mean()), torch.empty(x.size(1)).fill_(0.5) * x, torch.roll(x, 2), x + ramp.to(torch.float16) * torch.tensor(0.1),
        ]
        return torch.stack(parts, dim=1)


class Edges(nn.Module):
    """Infinities that are left out again, sizes that stay, dimensions that are not named."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("nothing", torch.full((2, width), float("-inf")), persistent=False)
        self.register_buffer("spike", torch.tensor([1.0, 2.0, float("inf")] + [1.0] * (width - 3)), persistent=False)
        self.register_buffer("unknown", torch.tensor([float("nan"), -3.0, 0.0] + [2.0] * (width - 3)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        empty = torch.logsumexp(self.nothing, 1).eq(float("-inf")).to(x.dtype)
        masked = torch.logsumexp(torch.where(x > 0.5, torch.full_like(x, float("-inf")), x), dim=2, keepdim=True)
        finite = torch.where(masked.isinf(), torch.zeros_like(masked), masked)
        sums = torch.nan_to_num(self.spike.cumsum(0), posinf=5.0)
        image = x.unsqueeze(1)
        wide = F.interpolate(0.3 * image, scale_factor=1.05, mode="bilinear").squeeze(1)
        partly = F.interpolate(image, scale_factor=(1.05, 2.0), mode="bilinear").squeeze(1)[..., : x.size(2)]
        parts = [
            x * sums, x * self.unknown.sign(), x * empty.sum(), finite * x, wide, partly,
            torch.einsum("...ij,...kj->...ik", x, x)[..., : x.size(2)], torch.einsum("b...,...c->b...c", x, x[0, 0])[:, 0, :, : x.size(2)],
            x * x.var(unbiased=False), x * x.std(unbiased=True), torch.broadcast_tensors(x, x[:, :1])[1],
        ]
        return torch.cat(parts, dim=1)


class StillCubic(nn.Module):
    """A bicubic interpolation whose size stays: PyTorch computes it, and passes the gradient on as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(0.3 * x, scale_factor=1.05, mode="bicubic")


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.view(-1)
        return self.drop(y) + z.view_as(y)


class Wide(nn.Module):
    """What halves overflow or lose where each step of it is rounded."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        big = x * 300
        parts = [
            F.rms_norm(big, (x.size(2),), self.weight), F.rms_norm(x * 0.001, (x.size(2),)), F.normalize(big, dim=-1),
            0.01 * torch.linalg.vector_norm(big, dim=[-1], keepdim=True) * x, 0.01 * big.std(-1, keepdim=True) * x, x.var(-1, keepdim=True) * x,
            torch.addcmul(x, big, big * 0.01, value=0.01), torch.lerp(x, big, 0.01), torch.logsumexp(x, 2, keepdim=True) * x,
            torch.cumsum(x, 2),
        ]
        return torch.cat(parts, dim=1)


class GatedRms(nn.Module):
    """SwiGLU behind an RMSNorm whose ε is PyTorch's own."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up, self.down = (nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Mixed(nn.Module):
    """Batch norm that keeps its state in float32 beside a narrow input, as mixed precision has it."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(x.to(torch.bfloat16)).to(x.dtype)


def cases() -> Iterator[Case]:
    yield Case("ops_elementary", Elementary(), (7,))
    # Decomposing takes `detach` away.
    yield Case("ops_rounding", Rounding(6), (6,), decomposed=False)
    yield Case("ops_indices", Indices(4, 6), (4, 6))
    yield Case("ops_windows", Windows(), (2, 6, 6), 2)
    yield Case("ops_sizes", Sizes(), (2, 4, 6), 2)
    yield Case("ops_accumulated", Accumulated(), (5, 5))
    yield Case("ops_einsums", Einsums(5), (4, 5))
    # An archive that is decomposed writes each in-place operation out, where PyTorch itself loses some.
    yield Case("ops_turned", Turned(), (4, 4), decomposed=False)
    yield Case("ops_strided", Strided(), (4, 4))
    yield Case("ops_integers", Integers(), (6,))
    yield Case("ops_promoted", Promoted(), (5,))
    yield Case("ops_edges", Edges(6), (6, 6), 2)
    # PyTorch's decomposition has another gradient than its kernel.
    yield Case("ops_still_cubic", StillCubic(), (1, 6, 6), 2, decomposed=False)
    yield Case("ops_dropped", Dropped(), (5,), eval_only=True)
    yield Case("ops_wide", Wide(6), (3, 6))
    yield Case("swiglu_rms", GatedRms(8, 16), (3, 8))
    yield Case("ops_mixed", Mixed(5), (5,), eval_only=True)
