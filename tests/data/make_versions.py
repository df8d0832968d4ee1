"""Writes what an older PyTorch exports, run with that PyTorch, which needs neither torchvision nor timm.

    python tests/data/make_versions.py [folder]

Archives and their results go to `torch-<version>/` below the golden folder, with a manifest of their own.
"""
import json
import sys
import warnings
from pathlib import Path

import torch

import golden_modules
import golden_programs
from make_golden import modes, write_exported

WANTED = {
    "mlp_gelu", "conv_bn_relu", "attention_fused", "attention_by_hand", "attention_masked", "constants",
    "batchnorm1d_mlp", "resample", "reductions", "tied", "lifted", "written_views",
}  # fmt: skip


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    golden = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden"
    version = ".".join(torch.__version__.split(".")[:2])
    folder = golden / f"torch-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for case in [*golden_modules.cases(), *golden_programs.programs()] if case.name in WANTED]
    entries = [write_exported(case, mode, folder) for case in cases for mode in modes(case)]
    manifest = {"torch": torch.__version__, "cases": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(entries)} cases of torch {version}")


if __name__ == "__main__":
    main()
