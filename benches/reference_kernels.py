"""The kernels that the project measures itself by: what `docs/performance.md` has a line for.

`cases` builds them, each with the input it is measured on. `export` publishes one for the daemon.
"""
import re
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "kernels"))
from make_kernels import publish  # noqa: E402  (a script's folder, not a package)


class Case(NamedTuple):
    """`shape` has the batch in front. The module is in the mode that it is measured in."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]

    @property
    def kernel_id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the map and leaves the shift to the norm after it."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


class Residual(nn.Module):
    """`x + f(x)`, with ReLU on the sum where `activated`."""

    def __init__(self, f: nn.Module, activated: bool = False):
        super().__init__()
        self.f, self.activated = f, activated

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.f(x)
        return torch.relu(y) if self.activated else y


def conv_bn_relu(channels: int, kernel: int = 3) -> nn.Module:
    return nn.Sequential(conv(channels, channels, kernel), nn.BatchNorm2d(channels), nn.ReLU())


def depthwise_separable(channels: int) -> nn.Module:
    return Residual(
        nn.Sequential(
            conv(channels, channels, 3, groups=channels),
            conv(channels, channels, 1),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
        )
    )


def bottleneck(channels: int) -> nn.Module:
    width = channels // 4
    return Residual(
        nn.Sequential(
            *(conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(conv(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
            *(conv(width, channels, 1), nn.BatchNorm2d(channels)),
        ),
        activated=True,
    )


def inverted_residual(channels: int) -> nn.Module:
    width = channels * 4
    return Residual(
        nn.Sequential(
            *(conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU6()),
            *(conv(width, width, 3, groups=width), nn.BatchNorm2d(width), nn.ReLU6()),
            *(conv(width, channels, 1), nn.BatchNorm2d(channels)),
        )
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        width = channels // 4
        self.down, self.up = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        average = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(average))))


def low_rank(width: int, rank: int = 8) -> nn.Module:
    return Residual(nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)))


def mlp(width: int) -> nn.Module:
    return Residual(
        nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    )


class SwiGlu(nn.Module):
    """RMS norm and a gated MLP. The norm is spelled out, as models that predate `nn.RMSNorm` have it."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.gate_and_up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)
        normal = x * torch.rsqrt(mean_square + 1e-6) * self.scale
        gate, up = self.gate_and_up(normal).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(batch, length, width))


class Scale(nn.Module):
    """Next to no work: what remains is the way to the daemon and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


def cases() -> Iterator[Case]:
    for size, channels, shape in (("64x32x32 b32", 64, (32, 64, 32, 32)), ("256x8x8 b64", 256, (64, 256, 8, 8))):
        yield Case(f"conv3x3_bn_relu {size}", conv_bn_relu(channels), shape)
        yield Case(f"conv3x3_bn_relu_eval {size}", conv_bn_relu(channels).eval(), shape)
        yield Case(f"conv1x1_bn_relu {size}", conv_bn_relu(channels, kernel=1), shape)
        yield Case(f"depthwise_separable {size}", depthwise_separable(channels), shape)
        yield Case(f"bottleneck {size}", bottleneck(channels), shape)
        yield Case(f"inverted_residual {size}", inverted_residual(channels), shape)
        yield Case(f"squeeze_excite {size}", SqueezeExcite(channels), shape)
    sequence = (8, 128, 256)
    yield Case("mlp 8x128x256", mlp(256), sequence)
    yield Case("lora 8x128x256", low_rank(256), sequence)
    yield Case("layernorm 8x128x256", nn.LayerNorm(256), sequence)
    yield Case("selfattention 8x128x256", SelfAttention(256), sequence)
    yield Case("swiglu 8x128x256", SwiGlu(256), sequence)
    yield Case("linear 64->64 b8", nn.Linear(64, 64), (8, 64))
    yield Case("scale 64 b1", Scale(), (1, 64))


def longer() -> Iterator[Case]:
    """What is measured only where it is asked for: `docs/performance.md` has no line for it in its table."""
    yield Case("selfattention 4x1024x256", SelfAttention(256), (4, 1024, 256))


def export(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """Writes the archive and its entry, the batch left free; returns the id under which the daemon finds it."""
    publish(Path(folder), case.kernel_id, case.name, case.module, case.shape[1:], dtype)
    return case.kernel_id


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python benches/reference_kernels.py FOLDER")
    torch.manual_seed(0)
    for case in cases():
        print(export(case, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
