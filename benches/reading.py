"""How long an artifact takes to be read and judged, beside PyTorch's own loaders on the same files."""
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
LOADERS = {"pt2": lambda path: torch.export.load(path).module(), "pt": torch.jit.load}


def modules():
    """A kernel of about 1 MB and one of about 40 MB, each with an input."""
    convolution = nn.Sequential(
        nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 64, 1),
    )
    yield "conv 1 MB", convolution, torch.randn(2, 64, 14, 14)
    wide = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(1570, 1570), nn.GELU())))
    yield "mlp 40 MB", wide, torch.randn(2, 1570)


def median_ms(function, count=9):
    function()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def reading(folder: Path):
    """A row for each kernel and format, in milliseconds: read, judged by every rule, tried as well, and loaded
    by PyTorch."""
    rows, arguments = [], []
    for name, module, example in modules():
        module.eval()
        paths = {ending: folder / f"{name.replace(' ', '-')}.{ending}" for ending in LOADERS}
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, paths["pt2"])
        torch.jit.save(torch.jit.trace(module, example), paths["pt"])
        for ending, path in paths.items():
            arguments += [str(path), ",".join(map(str, example.shape[1:]))]
            rows.append({"name": name, "format": ending, "torch_ms": median_ms(lambda: LOADERS[ending](path))})
    command = ["cargo", "bench", "--locked", "--bench", "validate", "--quiet", "--", *arguments]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [row | ours for row, ours in zip(rows, json.loads(output.splitlines()[-1]), strict=True)]


def table(rows):
    return [
        "| kernel | format | read ms | judged ms | tried as well ms | PyTorch's loader ms |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['name']} | {row['format']} | {row['read_ms']:.2f} | {row['judged_ms']:.2f} | "
            f"{row['tried_ms']:.1f} | {row['torch_ms']:.1f} |"
            for row in rows
        ),
    ]
