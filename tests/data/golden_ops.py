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


def cases() -> Iterator[Case]:
    yield Case("ops_elementary", Elementary(), (7,))
    # Decomposing takes `detach` away.
    yield Case("ops_rounding", Rounding(6), (6,), decomposed=False)
    yield Case("ops_indices", Indices(4, 6), (4, 6))
    yield Case("ops_windows", Windows(), (2, 6, 6), 2)
    yield Case("ops_sizes", Sizes(), (2, 4, 6), 2)
    yield Case("ops_accumulated", Accumulated(), (5, 5))
    yield Case("ops_einsums", Einsums(5), (4, 5))
