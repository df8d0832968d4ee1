"""Writes the golden data: small modules as archives, and what PyTorch computes with them.

    python tests/data/make_golden.py [folder] [case …]

For every case and mode there are

- `<case>.<mode>.pt`            a traced TorchScript archive,
- `scripted/<case>.<mode>.pt`   the same from `torch.jit.script`, which keeps control flow,
- `<case>.<mode>.pt2`           a `torch.export` archive,
- `decomposed/<case>.<mode>.pt2`  most of them after `run_decompositions()`, where changes of state are outputs,
- `half/<case>.<mode>.<dtype>.…`  some of them in bfloat16 and float16, traced and exported,
- `<case>.<mode>.safetensors`   `input`, `grad_output`, `output`, `grad.input`, `grad.<parameter>` and
  `buffer.<name>` as the forward pass left it.

The archives hold weights and buffers from before that pass and leave the batch free. `manifest.json` lists it
all. Running it twice gives the same bytes. Where cases are named, only theirs are written anew.
"""
import copy
import itertools
import json
import os
import sys
import warnings
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import golden_modules
import golden_ops
import golden_programs
import golden_scripts
from golden_modules import Case

TRACED_BATCH = 2
FROZEN = {"bottleneck", "squeeze_excite", "attention_masked", "tv_mobilenet_v3", "gpt_block"}
# What is written in float16 too; in bfloat16 is all that rounding leaves alone.
IN_FLOAT16 = {"conv2d", "mlp_gelu", "rms_norm", "attention_fused", "tv_vit", "tv_efficientnet_fused", "gpt_block", "ops_wide", "swiglu_rms"}
# How far PyTorch's own result may be from that in float64. Beyond, rounding decides: on which side of a corner a
# value falls, or what a gradient is that would be 0.
MAX_ROUNDING = 1e-2
# A value of it lies so near a ReLU's corner that another order of summing puts it on the other side.
AT_A_CORNER = {("projected_residual", "train")}
# Narrow inside already.
MIXED = {"ops_mixed"}
# The records that the archive's writer makes by itself, and the sources' positions, which name the folders of
# the machine that the archive was made on.
OWN_RECORDS = {"version", ".data/version", ".data/serialization_id"}
DEBUG_RECORD = ".debug_pkl"


def randomize(module: nn.Module, seed: int) -> None:
    """Values that show a mistake: no zero bias, no weight of one, no fresh running statistics."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda like: torch.randn(like.shape, generator=draw)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            if parameter.dim() >= 2 and not isinstance(owner, nn.modules.batchnorm._NormBase):
                fan_in = parameter[0].numel()
                parameter.copy_(normal(parameter) * fan_in**-0.5)
            else:
                parameter.copy_(parameter.mean().round() + 0.3 * normal(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(7)
            elif buffer.is_floating_point():
                buffer.copy_(0.3 * normal(buffer))


def modes(case: Case) -> list[str]:
    """Eval alone where training changes nothing, and where its result is a matter of chance."""
    parts = list(case.module.modules())
    if case.eval_only or any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts):
        return ["eval"]
    switched = (nn.modules.batchnorm._BatchNorm, nn.Dropout)
    return ["eval", "train"] if any(isinstance(part, switched) for part in parts) else ["eval"]


def rewritten(source: Path, target: Path) -> None:
    """Copies an archive with PyTorch's own writer, less the records that name this machine's folders."""
    reader = torch._C.PyTorchFileReader(str(source))
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = torch._C.PyTorchFileWriter(str(target))
    # Ops whose signature has changed are read by the version that the archive names.
    version = next(name for name in reader.get_all_records() if name in ("version", ".data/version"))
    writer.set_min_version(int(reader.get_record(version)))
    for name in reader.get_all_records():
        if name not in OWN_RECORDS and not name.endswith(DEBUG_RECORD):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()


def save_scripted(module: torch.jit.ScriptModule, before: dict[str, Tensor], target: Path) -> None:
    """Saves with the state from before: tracing has run the module once."""
    module.load_state_dict(before, strict=False)  # tracing makes every buffer persistent
    with TemporaryDirectory() as folder:
        whole = Path(folder) / target.name
        torch.jit.save(module, str(whole))
        rewritten(whole, target)
    assert_state(torch.jit.load(str(target)).state_dict(), before)


def save_exported(program: torch.export.ExportedProgram, before: dict[str, Tensor], target: Path) -> None:
    for node in program.graph.nodes:
        for unrepeatable in ("stack_trace", "from_node"):  # folders; addresses in memory
            node.meta.pop(unrepeatable, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, str(target))
    assert_state(torch.export.load(str(target)).state_dict, before)


def assert_state(state: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert state.keys() >= before.keys(), (state.keys(), before.keys())
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor), f"{name} was changed by the making of the archive"


def golden(module: nn.Module, x: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    grad_output = torch.randn(y.shape, generator=draw).to(y.dtype)
    y.backward(grad_output)
    tensors = {"input": x.detach(), "grad_output": grad_output, "output": y.detach(), "grad.input": x.grad}
    tensors |= {f"grad.{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    tensors |= {f"buffer.{name}": buffer for name, buffer in module.named_buffers()}
    for name, tensor in tensors.items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name
        # A gradient of nothing but zeros would pass a backward pass that does nothing.
        assert not name.startswith("grad.") or tensor.abs().sum() > 0, name
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def ops(program: torch.export.ExportedProgram) -> list[str]:
    calls = (node.target for node in program.graph.nodes if node.op == "call_function")
    return sorted({str(target) for target in calls})


def check(loaded, x: Tensor, expected: Tensor) -> None:
    """The archive itself computes the golden output, at the golden's batch."""
    rtol, atol = (1e-5, 1e-6) if expected.dtype == torch.float32 else (2e-2, 2e-2)
    torch.testing.assert_close(loaded(x), expected, rtol=rtol, atol=atol)


def write_frozen(case: Case, folder: Path) -> dict:
    """The archive whose weights are constants, beside the results that the case has in eval mode."""
    randomize(case.module, zlib.crc32(case.name.encode()))
    stem = f"{case.name}.eval"
    files = {"torchscript_frozen": f"frozen/{stem}.pt", "golden": f"{stem}.safetensors"}
    frozen = torch.jit.freeze(torch.jit.script(copy.deepcopy(case.module).eval()))
    save_scripted(frozen, {}, folder / files["torchscript_frozen"])
    tensors = load_file(str(folder / files["golden"]))
    check(torch.jit.load(str(folder / files["torchscript_frozen"])), tensors["input"], tensors["output"])
    shape = list(tensors["input"].shape)
    return {"case": case.name, "mode": "eval", "dtype": "float32", "frozen": True, "files": files, "input": shape}


def write_half(case: Case, mode: str, dtype: torch.dtype, folder: Path) -> dict | None:
    """The case in a narrow type; nothing where its result is a matter of rounding."""
    seed = zlib.crc32(case.name.encode())
    module = copy.deepcopy(case.module)
    randomize(module, seed)
    module.to(dtype).train(mode == "train")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    draw = torch.Generator().manual_seed(seed + 2)
    example = torch.randn(TRACED_BATCH, *case.sample, generator=draw).to(dtype)
    x = torch.randn(case.batch, *case.sample, generator=draw).to(dtype)
    fresh = lambda: copy.deepcopy(module)
    state = draw.get_state()
    tensors = golden(fresh(), x, draw)
    draw.set_state(state)
    exact = golden(fresh().double(), x.double(), draw)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and name not in ("input", "grad_output"):
            if (tensor.double() - exact[name]).norm() > MAX_ROUNDING * exact[name].norm():
                return None
    stem = f"half/{case.name}.{mode}.{str(dtype).removeprefix('torch.')}"
    files = {"torchscript": f"{stem}.pt", "pt2": f"{stem}.pt2", "golden": f"{stem}.safetensors"}
    save_scripted(torch.jit.trace(fresh(), example, check_trace=False), before, folder / files["torchscript"])
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(fresh(), (example,), dynamic_shapes=({0: batch},))
    save_exported(program, before, folder / files["pt2"])
    save_file(tensors, str(folder / files["golden"]))
    check(torch.jit.load(str(folder / files["torchscript"])), x, tensors["output"])
    check(torch.export.load(str(folder / files["pt2"])).module(), x, tensors["output"])
    return {
        "case": case.name,
        "mode": mode,
        "dtype": str(dtype).removeprefix("torch."),
        "files": files,
        "archive_batch": TRACED_BATCH,
        "input": list(x.shape),
        "output": list(tensors["output"].shape),
    }


def write_case(case: Case, mode: str, folder: Path) -> dict:
    seed = zlib.crc32(case.name.encode())
    randomize(case.module, seed)
    case.module.train(mode == "train")
    before = {name: tensor.clone() for name, tensor in case.module.state_dict().items()}
    draw = torch.Generator().manual_seed(seed + 1)
    example = torch.randn(TRACED_BATCH, *case.sample, generator=draw)
    x = torch.randn(case.batch, *case.sample, generator=draw)
    fresh = lambda: copy.deepcopy(case.module)

    stem = f"{case.name}.{mode}"
    files = {"torchscript_scripted": f"scripted/{stem}.pt", "golden": f"{stem}.safetensors"}
    exported, found = [], {"ops": []}
    if case.traced:
        files |= {"torchscript": f"{stem}.pt", "pt2": f"{stem}.pt2"}
        save_scripted(torch.jit.trace(fresh(), example, check_trace=False), before, folder / files["torchscript"])
    save_scripted(torch.jit.script(fresh()), before, folder / files["torchscript_scripted"])
    if case.traced:
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(fresh(), (example,), dynamic_shapes=({0: batch},))
        save_exported(program, before, folder / files["pt2"])
        exported, found = ["pt2"], {"ops": ops(program)}
        if case.decomposed:
            files["pt2_decomposed"] = f"decomposed/{stem}.pt2"
            exported.append("pt2_decomposed")
            program = program.run_decompositions()
            found["ops_decomposed"] = ops(program)
            save_exported(program, before, folder / files["pt2_decomposed"])

    tensors = golden(fresh(), x, draw)
    save_file(tensors, str(folder / files["golden"]))
    for script in (kind for kind in files if kind.startswith("torchscript")):
        check(torch.jit.load(str(folder / files[script])), x, tensors["output"])
    for kind in exported:
        check(torch.export.load(str(folder / files[kind])).module(), x, tensors["output"])
    return {
        "case": case.name,
        "mode": mode,
        "dtype": "float32",
        "files": files,
        "archive_batch": TRACED_BATCH,
        "input": list(x.shape),
        "output": list(tensors["output"].shape),
        "parameters": sum(p.numel() for p in case.module.parameters()),
    } | found


def is_extra(entry: dict) -> bool:
    return entry["dtype"] != "float32" or entry.get("frozen", False)


def write_exported(case: Case, mode: str, folder: Path) -> dict:
    """The exported archive alone, as another version of PyTorch writes it."""
    seed = zlib.crc32(case.name.encode())
    randomize(case.module, seed)
    case.module.train(mode == "train")
    before = {name: tensor.clone() for name, tensor in case.module.state_dict().items()}
    draw = torch.Generator().manual_seed(seed + 1)
    example = torch.randn(TRACED_BATCH, *case.sample, generator=draw)
    x = torch.randn(case.batch, *case.sample, generator=draw)
    stem = f"{case.name}.{mode}"
    files = {"pt2": f"{stem}.pt2", "pt2_decomposed": f"{stem}.decomposed.pt2", "golden": f"{stem}.safetensors"}
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(copy.deepcopy(case.module), (example,), dynamic_shapes=({0: batch},))
    save_exported(program, before, folder / files["pt2"])
    save_exported(program.run_decompositions(), before, folder / files["pt2_decomposed"])
    tensors = golden(copy.deepcopy(case.module), x, draw)
    save_file(tensors, str(folder / files["golden"]))
    for kind in ("pt2", "pt2_decomposed"):
        check(torch.export.load(str(folder / files[kind])).module(), x, tensors["output"])
    return {"case": case.name, "mode": mode, "dtype": "float32", "files": files, "input": list(x.shape)}


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch.jit is deprecated; its archives are not gone
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "golden"
    wanted = set(sys.argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    if wanted:
        kept = json.loads((folder / "manifest.json").read_text())["cases"]
    entries = []
    import golden_blocks  # What PyTorch's older versions write is made without torchvision and timm.

    cases = list(itertools.chain(golden_modules.cases(), golden_ops.cases(), golden_blocks.blocks(), golden_programs.programs(), golden_scripts.scripts()))
    for case in cases:
        if wanted and case.name not in wanted:
            entries += (entry for entry in kept if entry["case"] == case.name and not is_extra(entry))
            continue
        for mode in modes(case):
            entries.append(write_case(case, mode, folder))
            print(f"{case.name} {mode}: {', '.join(entries[-1]['ops'])}", flush=True)
    # After all others: what tracing numbers its classes from would shift theirs.
    for case in cases:
        if wanted and case.name not in wanted:
            entries += (entry for entry in kept if entry["case"] == case.name and is_extra(entry))
            continue
        if case.name in FROZEN:
            entries.append(write_frozen(case, folder))
        narrow = [torch.bfloat16] + [torch.float16] * (case.name in IN_FLOAT16)
        smooth = (mode for mode in modes(case) if case.traced and case.name not in MIXED and (case.name, mode) not in AT_A_CORNER)
        written = (write_half(case, mode, dtype, folder) for mode in smooth for dtype in narrow)
        entries += filter(None, written)
    manifest = {"torch": torch.__version__, "cases": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{len(entries)} cases, {total / 1e6:.2f} MB in {folder}")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Scripting walks sets of names: with a random hash, each run writes them in another order.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
    main()
