"""Writes the corpora that fuzzing starts from, out of the golden archives and the hostile ones.

    python3 fuzz/seed.py [folder]
"""
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden"
# Longer inputs cost the fuzzer more than they teach it.
MOST_BYTES = 100_000


def record(artifact):
    """A record of a forward pass of an artifact, as a daemon writes it."""
    header = {
        "format": 1, "version": "0.1.0", "time_unix_ms": 1800000000000, "device": "cpu", "kernel": "k",
        "digest": hashlib.sha256(artifact).hexdigest(), "session": 1, "uid": 0, "layer": 1, "seed": 0,
        "generation": 1, "role": "blended", "alpha": 0.5, "step": 0, "direction": "forward", "again": False,
        "train": True, "rng_seed": 1, "dtype": "float32", "input_shape": [1, 4], "output_shape": [1, 4],
        "wants_input": True, "wants_parameters": True, "code": "kernel.non_finite", "message": "", "elapsed_ns": 1,
        "settings": {"time_limit_ns": 1, "plan_time_limit_ns": 1, "non_finite_guard": True, "series": True, "max_plan_bytes": 1,
                     "max_flops": 1, "threads": 1},
    }
    end = len(artifact)
    tensors = {
        "__metadata__": {"kasmina.record": json.dumps(header)},
        "artifact": {"dtype": "U8", "shape": [end], "data_offsets": [0, end]},
        "input": {"dtype": "F32", "shape": [1, 4], "data_offsets": [end, end + 16]},
    }
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + artifact + bytes(16)


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "fuzz" / "corpus"
    seeds = {target: set() for target in ("zip", "pickle", "pt2", "torchscript", "artifact", "record")}
    with tempfile.TemporaryDirectory() as hostile:
        script = ROOT / "tests" / "data" / "make_hostile.py"
        subprocess.run([sys.executable, script, hostile, "/nonexistent/canary"], check=True)
        archives = [*sorted(GOLDEN.rglob("*.pt")), *sorted(GOLDEN.rglob("*.pt2"))]
        archives += [path for path in sorted(Path(hostile).iterdir()) if path.suffix != ".json"]
        for path in archives:
            content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
            seeds["artifact"].add(content)
            seeds["zip"].add(content)
            if 0 < len(content) <= MOST_BYTES // 4:
                seeds["record"].add(record(content))
            try:
                with zipfile.ZipFile(path) as archive:
                    files = [(name, archive.read(name)) for name in archive.namelist()]
            except Exception:
                continue
            for name, content in files:
                kind = {".pkl": "pickle", ".py": "torchscript", ".json": "pt2"}.get(Path(name).suffix)
                if kind and not name.endswith("_config.json"):
                    seeds[kind].add(content)
    for target, contents in seeds.items():
        place = folder / target
        place.mkdir(parents=True, exist_ok=True)
        small = [content for content in contents if 0 < len(content) <= MOST_BYTES]
        for content in small:
            (place / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
        print(f"{target}: {len(small)} seeds")


if __name__ == "__main__":
    main()
