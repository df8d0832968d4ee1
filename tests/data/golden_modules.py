"""The modules whose archives and results `make_golden.py` writes: what kernels are made of, kept small.

Each is written the way people write them, so that the archives hold what tracing, scripting and exporting
make of ordinary code. Together they touch every op of the whitelist that a module can reach.
"""
import math
from typing import Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Case(NamedTuple):
    """A module, the shape of one sample (without the batch), and the batch that the results are computed at.

    Archives are always made at batch 2, so any other number here shows that the batch stays free.
    """

    name: str
    module: nn.Module
    sample: tuple[int, ...]
    batch: int = 3
    # Whether the archive with decomposed ops is kept too. Those are long, and show each op but once.
    decomposed: bool = True
    # Only where training differs in nothing but the flag of a dropout of 0.
    eval_only: bool = False
    # Whether tracing and exporting keep its meaning: where a loop or a branch depends on sizes they do not.
    traced: bool = True


# Convolutions and what surrounds them.


class ConvBnRelu(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class DepthwiseSeparable(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.pointwise(self.depthwise(x))))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.restore = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.restore(self.spatial(self.reduce(x))))


class InvertedResidual(nn.Module):
    def __init__(self, channels: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Hardtanh(-1.0, 2.0),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels, momentum=0.3, eps=1e-3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(channels, channels // reduction, 1)
        self.up = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))


class ProjectedResidual(nn.Module):
    """A residual block that halves the map, with a 1x1 projection on the short way."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.project = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.project(x)
        return F.relu(y)


class DenseBlock(nn.Module):
    """Every layer sees all maps before it. The list is walked by a loop, which scripting keeps as code."""

    def __init__(self, channels: int, growth: int, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth, 3, padding=1) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, F.leaky_relu(layer(x), 0.1)], dim=1)
        return x


class PooledHead(nn.Module):
    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.max_pool, self.avg_pool = nn.MaxPool2d(2), nn.AvgPool2d(3, stride=1, padding=1)
        self.adaptive = nn.AdaptiveAvgPool2d((2, 2))
        self.classify = nn.Linear(channels * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(torch.flatten(self.adaptive(self.avg_pool(self.max_pool(x))), 1))


class OddPools(nn.Module):
    """Windows that overlap, are padded, dilated, cut at the border, and averaged without the padding."""

    def forward(self, x: Tensor) -> Tensor:
        a = F.max_pool2d(x, 3, stride=2, padding=1)
        b = F.max_pool2d(x, 2, stride=2, dilation=2, ceil_mode=True)
        c = F.avg_pool2d(x, (3, 2), stride=2, padding=1, count_include_pad=False)
        d = F.adaptive_max_pool2d(x, (4, 4))
        return torch.cat([a, F.pad(b, [0, 1, 0, 1]), c, d], dim=1)


class Resample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.grouped = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.nearest = nn.Upsample(scale_factor=2.0, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        bilinear = F.interpolate(x, size=[8, 8], mode="bilinear", align_corners=False)
        aligned = F.interpolate(x, size=[8, 8], mode="bilinear", align_corners=True)
        return self.up(x) + self.grouped(x) * self.nearest(x) + bilinear - 0.5 * aligned


class Conv1dInstanceNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, 2 * channels, 5, stride=2, padding=2)
        self.norm = nn.InstanceNorm1d(2 * channels, affine=True)
        self.pool = nn.AvgPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.silu(self.norm(self.conv(x))))


# Sequence modules.


class Mlp(nn.Module):
    def __init__(self, width: int, approximate: str = "none"):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.act, self.down = nn.Linear(width, 3 * width), nn.GELU(approximate), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class SwiGlu(nn.Module):
    """RMS norm written by hand, then a gated MLP from one fused projection."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        gate, up = self.gate_up(normal).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class RmsNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.project = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x))


class LowRank(nn.Module):
    """An adapter as in LoRA: a frozen weight, and two thin factors beside it."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.base = nn.Linear(width, width)
        self.base.weight.requires_grad_(False)
        self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.scaling = 16 / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x)) * self.scaling


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.out(y.transpose(1, 2).reshape(b, t, d))


class CrossAttention(nn.Module):
    """Keys fewer and more than queries, causal and not, heads of odd widths, values of another width than keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(width, 7 * heads), nn.Linear(width, 7 * heads), nn.Linear(width, 5 * heads)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)

    def attend(self, x: Tensor, others: Tensor, causal: bool) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(others)), self.split(self.v(others))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return y.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        few = x[:, ::2]
        many = self.attend(x, few, False) * self.attend(x, few, True)
        return torch.cat([many, self.attend(few, x, False) * self.attend(few, x, True)], dim=1)


class HandAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, self.head_width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.head_width)
        y = torch.matmul(F.softmax(scores, dim=-1), v)
        return y.transpose(1, 2).contiguous().view(x.size(0), x.size(1), -1)


class MaskedAttention(nn.Module):
    """A causal mask kept as a buffer, cut to the length of the input and filled in."""

    def __init__(self, width: int, longest: int):
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(longest, longest)) == 0)
        self.qk = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        t = x.size(1)
        q, k = torch.split(self.qk(x), x.size(2), dim=2)
        scores = torch.bmm(q, k.transpose(1, 2)) * x.size(2) ** -0.5
        scores = scores.masked_fill(self.mask[:t, :t], float("-inf"))
        return torch.bmm(torch.softmax(scores, dim=-1), x)


class BiasedAttention(nn.Module):
    """Scaled dot product attention with an additive mask that is learned."""

    def __init__(self, width: int, length: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(length, length))
        self.project = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.project(x).unsqueeze(1).chunk(2, -1)
        return F.scaled_dot_product_attention(q, k, x.unsqueeze(1), attn_mask=self.bias, scale=0.4).squeeze(1)


# Everything else: activations, arithmetic, reductions, layout.


class Activations(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.leaky, self.silu = nn.LeakyReLU(0.2), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.silu(self.a(x)) * torch.sigmoid(self.b(x)) + torch.tanh(self.leaky(x))


class MoreActivations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(
            [
                F.elu(x, 0.7),
                F.softplus(x, beta=1.5, threshold=4.0),
                F.hardswish(4 * x),
                F.hardsigmoid(4 * x),
                F.relu6(5 * x),
                F.log_softmax(x, dim=-1),
                F.hardtanh(x, -0.5, 0.8),
            ],
            dim=1,
        )


class Layout(nn.Module):
    """Cuts a tensor up and puts it together again by every means there is."""

    def __init__(self, width: int):
        super().__init__()
        self.row = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [2, 4], dim=1)
        middle = x[:, 1:5:2, :]
        single = x.select(1, 0).unsqueeze(1).expand(-1, 2, -1)
        row = self.row.unsqueeze(0).unsqueeze(0).expand(x.size(0), 1, -1)
        joined = torch.cat([second, first, middle * single, row, x[..., :1].expand_as(x)], dim=1)
        return joined.permute(0, 2, 1).flatten(1).unsqueeze(-1).squeeze(2)


class Arithmetic(nn.Module):
    """Broadcasting of parameters against the input, and the ops whose gradients are easily got wrong."""

    def __init__(self, width: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(1, 1, width))
        self.rows = nn.Parameter(torch.ones(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.shift) * self.scale / (1.5 + self.rows.pow(2))
        y = y + torch.sqrt(torch.exp(0.3 * y) + 1.0) - torch.log(1.0 + y.abs())
        return 2.0 - (-y) ** 3 + 1.0 / (y * y + 0.5)


class Choices(nn.Module):
    """Comparisons, choices between values, and limits."""

    def __init__(self, width: int):
        super().__init__()
        self.limit = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.where(x > self.limit, x * 2.0, self.limit - x)
        y = torch.maximum(y, self.limit) + torch.minimum(x, 0.5 * self.limit)
        y = y.clamp(-1.0, 1.5) + x.clamp(min=0.1)
        return y.masked_fill(x < -1.0, 0.25) * (x >= 0).to(x.dtype)


class Reductions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        spread = x.var(dim=2, unbiased=False, keepdim=True)
        return torch.cat(
            [
                x.sum(dim=(1, 2)).unsqueeze(1),
                x.mean(dim=1),
                x.amax(dim=-1),
                (x / torch.sqrt(spread + 1e-3)).sum(dim=-1),
                x.var(dim=1),
            ],
            dim=1,
        )


class Products(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.zeros(width, width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        gram = torch.bmm(x, x.transpose(1, 2))
        return torch.matmul(gram, x @ self.matrix) + torch.matmul(x, self.vector).unsqueeze(-1)


class Constants(nn.Module):
    """Positions made in forward, a table in a buffer, and a pick by constant indices."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.register_buffer("table", torch.zeros(length, width))
        self.register_buffer("order", torch.tensor([2, 0, 3, 1][:length]), persistent=True)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.size(1), dtype=torch.float32).unsqueeze(-1)
        y = x + self.table + 0.1 * position + torch.ones(x.size(2)) * 0.5
        return y[:, self.order] + torch.zeros_like(x)


class Padding(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.conv(F.pad(x, [1, 1, 1, 1])), [0, 1, 2, 0], value=0.5)


class DropoutMlp(nn.Module):
    def __init__(self, width: int, p: float):
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(F.relu(self.a(x))))


def mlp_with_batch_norm(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def norm_without_affine(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.GroupNorm(2, channels, affine=False),
        nn.Conv2d(channels, channels, 1),
        nn.LayerNorm([6, 6], elementwise_affine=False),
        nn.BatchNorm2d(channels, affine=False),
    )


def cases() -> Iterator[Case]:
    image, sequence = (4, 8, 8), (5, 12)
    yield Case("conv2d", nn.Conv2d(4, 6, 3, padding=1), image)
    yield Case("conv2d_strided", nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), image, 2)
    yield Case("conv2d_dilated", nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2), image)
    yield Case("conv2d_grouped", nn.Conv2d(4, 8, 3, padding="same", groups=2), image, 1)
    yield Case("conv_bn_relu", ConvBnRelu(4), image, 5)
    yield Case("depthwise_separable", DepthwiseSeparable(4), image)
    yield Case("bottleneck", Bottleneck(8, 4), (8, 6, 6))
    yield Case("inverted_residual", InvertedResidual(4, 3), (4, 6, 6), 4, decomposed=False)
    yield Case("squeeze_excite", SqueezeExcite(8, 2), (8, 6, 6))
    yield Case("projected_residual", ProjectedResidual(4, 6), image, decomposed=False)
    yield Case("dense_block", DenseBlock(4, 3, 3), (4, 6, 6), 2)
    yield Case("pooled_head", PooledHead(4, 5), image)
    yield Case("odd_pools", OddPools(), (3, 7, 7))
    yield Case("resample", Resample(4), (4, 4, 4))
    yield Case("conv1d_instance_norm", Conv1dInstanceNorm(4), (4, 16))
    yield Case("padding", Padding(3), (3, 6, 6), 2)
    yield Case("norm_without_affine", norm_without_affine(4), (4, 6, 6))
    yield Case("mlp_gelu", Mlp(12), sequence)
    yield Case("mlp_gelu_tanh", Mlp(12, "tanh"), sequence, 2)
    yield Case("swiglu", SwiGlu(12), sequence)
    yield Case("rms_norm", RmsNorm(12), sequence)
    yield Case("lora", LowRank(16, 4), sequence[:1] + (16,))
    yield Case("attention_fused", FusedAttention(16, 4), (6, 16))
    yield Case("attention_causal", FusedAttention(16, 2, causal=True), (6, 16), 2, decomposed=False)
    yield Case("attention_crossed", CrossAttention(8, 2), (7, 8), decomposed=False)
    yield Case("attention_by_hand", HandAttention(16, 4), (6, 16))
    yield Case("attention_masked", MaskedAttention(8, 9), (6, 8))
    yield Case("attention_biased", BiasedAttention(8, 6), (6, 8), 4)
    yield Case("batchnorm1d_mlp", mlp_with_batch_norm(10, 16, 4), (10,), 7)
    yield Case("activations", Activations(12), (12,), 4)
    yield Case("more_activations", MoreActivations(), (9,))
    yield Case("layout", Layout(5), (6, 5))
    yield Case("arithmetic", Arithmetic(6), (4, 6))
    yield Case("choices", Choices(6), (4, 6))
    yield Case("reductions", Reductions(), (5, 5))
    yield Case("products", Products(6), (4, 6))
    yield Case("constants", Constants(4, 6), (4, 6), 2)
    yield Case("dropout", DropoutMlp(10, 0.3), (10,))
    yield Case("dropout_zero", DropoutMlp(10, 0.0), (10,))
