"""The kernels of the end-to-end suite, and their in-process twins."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvNorm(nn.Module):
    def __init__(self, channels=6):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels=6):
        super().__init__()
        self.down = nn.Conv2d(channels, 3, 1)
        self.up = nn.Conv2d(3, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Attention(nn.Module):
    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        return x + self.out(y)


class Mlp(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.up = nn.Linear(width, 16)
        self.down = nn.Linear(16, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Drop(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.linear(x))


IMAGE = (4, 6, 5, 5)
TOKENS = (4, 3, 8)
INPUTS = {
    "conv-norm": (ConvNorm, IMAGE),
    "squeeze": (SqueezeExcite, IMAGE),
    "attention": (Attention, TOKENS),
    "mlp": (Mlp, TOKENS),
    "drop": (Drop, TOKENS),
}


HALVES = (torch.bfloat16, torch.float16)


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def twin(name):
    """A fresh copy of the module that a kernel was written from."""
    make, _ = INPUTS[name.removesuffix("-ts").removesuffix("-nan")]
    # Made on the CPU wherever it is to lie: each device has random numbers of its own.
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(sum(map(ord, name.removesuffix("-ts").removesuffix("-nan"))))
        made = make()
    return made.to(torch.get_default_device())


def export(module, shape, path, dtype=torch.float32):
    program = torch.export.export(
        module.train(), (torch.randn(shape, dtype=dtype),), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=4096)},)
    )
    torch.export.save(program, str(path))


def write(folder):
    """Writes every kernel as PT2, two of them as TorchScript too, and some that are wrong."""
    for name, (_, shape) in INPUTS.items():
        export(twin(name), shape, folder / f"{name}.pt2")
    for name in ("conv-norm", "attention"):
        _, shape = INPUTS[name]
        # In eval mode, so that tracing does not move the running statistics.
        torch.jit.trace(twin(name).eval(), torch.randn(shape)).save(str(folder / f"{name}-ts.pt"))
    for dtype in HALVES:
        export(twin("mlp").to(dtype), TOKENS, folder / f"mlp-{name_of(dtype)}.pt2", dtype)
    broken = twin("mlp")
    with torch.no_grad():
        broken.up.weight[0, 0] = float("nan")
    export(broken, TOKENS, folder / "mlp-nan.pt2")
    (folder / "garbage.pt2").write_bytes(b"PK\x03\x04 this is no archive")
