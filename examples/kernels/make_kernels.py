"""Writes the example kernels, and the network of the quickstart, as the daemon reads them.

    python examples/kernels/make_kernels.py

A kernel is an ordinary `nn.Module` of one input and one output. `publish` shows all that it takes: export it with
the batch left free, and put a catalogue entry with its SHA-256 beside it. The folder is then an origin that
`kasminad` can be pointed at.
"""
import copy
import hashlib
import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

MADE_AT = "2026-01-01T00:00:00Z"
HERE = Path(__file__).resolve().parent


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
        self.norm = nn.GroupNorm(4, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.pointwise(self.depthwise(x))))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.reduce, self.norm1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.spatial, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.restore, self.norm3 = nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.reduce(x)))
        y = torch.relu(self.norm2(self.spatial(y)))
        return torch.relu(x + self.norm3(self.restore(y)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class ResidualDoubleConv(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def save_exported(module: nn.Module, example: Tensor, target: Path) -> None:
    """A PT2 archive whose batch may be any number."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(copy.deepcopy(module), (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the maker's folders are no reader's business
    torch.export.save(program, str(target))


def save_traced(module: nn.Module, example: Tensor, target: Path) -> None:
    """The same as TorchScript."""
    traced = torch.jit.trace(copy.deepcopy(module), example, check_trace=False)
    traced.load_state_dict(module.state_dict())  # tracing has run it once, which moves running statistics
    with TemporaryDirectory() as folder:
        whole = Path(folder) / target.name
        torch.jit.save(traced, str(whole))
        drop_positions(whole, target)


def drop_positions(source: Path, target: Path) -> None:
    """Copies an archive without the records that tie its code to the maker's files."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    names = reader.get_all_records()
    version = next(name for name in names if name in ("version", ".data/version"))
    writer.set_min_version(int(reader.get_record(version)))
    for name in names:
        # The writer adds the version and the archive's id by itself.
        if name not in (version, ".data/serialization_id") and not name.endswith(".debug_pkl"):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def write_entry(folder: Path, kernel_id: str, name: str, module: nn.Module, sample: tuple[int, ...], artifact: str,
                blueprint_id: str, pipeline: str) -> None:
    """The catalogue entry, with the fields of Urza's API."""
    with torch.no_grad():
        output = copy.deepcopy(module)(torch.zeros(2, *sample))
    state = module.state_dict().values()
    entry = {
        "id": kernel_id,
        "blueprint_id": blueprint_id,
        "status": "validated",
        "compilation_pipeline": pipeline,
        "kernel_binary_ref": artifact,
        "validation_report": None,
        "created_at": MADE_AT,
        "updated_at": MADE_AT,
        "metadata": {
            "kernel_id": kernel_id,
            "blueprint_id": blueprint_id,
            "name": name,
            "input_shape": list(sample),
            "output_shape": list(output.shape[1:]),
            "parameter_count": sum(p.numel() for p in module.parameters()),
            "device_requirements": {"devices": ["cpu", "cuda"]},
            "memory_footprint_mb": round(sum(t.numel() * t.element_size() for t in state) / 1e6, 6),
            "compilation_target": "portable",
            "checksum": hashlib.sha256((folder / artifact).read_bytes()).hexdigest(),
            "compatibility_version": "1.0",
        },
    }
    (folder / f"{kernel_id}.json").write_text(json.dumps(entry, indent=2) + "\n")


def publish(folder: Path, kernel_id: str, name: str, module: nn.Module, sample: tuple[int, ...],
            dtype: torch.dtype = torch.float32) -> None:
    """Exports a module in the mode that it is in, and writes its entry. `sample` is a shape without the batch, `dtype` what it
    takes."""
    folder.mkdir(parents=True, exist_ok=True)
    artifact = f"{kernel_id}.pt2"
    save_exported(module, torch.randn(2, *sample, dtype=dtype), folder / artifact)
    write_entry(folder, kernel_id, name, module, sample, artifact, kernel_id, "torch.export")


def kernels() -> list[tuple[str, str, nn.Module]]:
    """For a layer of 16 channels. In training mode: the daemon switches to eval by itself."""
    return [
        ("conv3x3-bn-relu", "3x3 convolution, batch norm, ReLU", ConvBnRelu(16)),
        ("depthwise-separable", "depthwise and pointwise convolution, group norm, residual", DepthwiseSeparable(16)),
        ("bottleneck", "1x1, 3x3 and 1x1 convolutions with batch norm, residual", Bottleneck(16, 8)),
        ("squeeze-excite", "channels weighted by what they hold on average", SqueezeExcite(16, 4)),
        ("residual-double-conv", "two 3x3 convolutions with batch norm, residual", ResidualDoubleConv(16)),
    ]


def digits_network() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """The quickstart's network in three parts. The middle one is the layer that is given seeds; being a 1x1
    convolution it cannot see strokes, so there is something to gain."""
    return [
        ("stem", nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()), (1, 8, 8)),
        ("host", nn.Conv2d(16, 16, 1), (16, 8, 8)),
        ("head", nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)), (16, 8, 8)),
    ]


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch.jit is deprecated, and still in wide use
    torch.manual_seed(2026)
    sample = (16, 8, 8)
    for kernel_id, name, module in kernels():
        publish(HERE, kernel_id, name, module, sample)
        save_traced(module, torch.randn(2, *sample), HERE / f"{kernel_id}.pt")
        write_entry(HERE, f"{kernel_id}-ts", f"{name} (TorchScript)", module, sample, f"{kernel_id}.pt", kernel_id,
                    "torch.jit.trace")
    torch.manual_seed(1)
    digits = HERE.parent / "digits"
    digits.mkdir(exist_ok=True)
    for name, module, shape in digits_network():
        save_exported(module, torch.randn(2, *shape), digits / f"{name}.pt2")


if __name__ == "__main__":
    main()
