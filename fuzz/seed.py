"""Writes the corpora that fuzzing starts from, out of the golden archives and the hostile ones.

    python3 fuzz/seed.py [folder]
"""
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden"
# Longer inputs cost the fuzzer more than they teach it.
MOST_BYTES = 100_000


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "fuzz" / "corpus"
    seeds = {target: set() for target in ("zip", "pickle", "pt2", "torchscript", "artifact")}
    with tempfile.TemporaryDirectory() as hostile:
        script = ROOT / "tests" / "data" / "make_hostile.py"
        subprocess.run([sys.executable, script, hostile, "/nonexistent/canary"], check=True)
        archives = [*sorted(GOLDEN.rglob("*.pt")), *sorted(GOLDEN.rglob("*.pt2"))]
        archives += [path for path in sorted(Path(hostile).iterdir()) if path.suffix != ".json"]
        for path in archives:
            content = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
            seeds["artifact"].add(content)
            seeds["zip"].add(content)
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
