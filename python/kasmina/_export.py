"""What a seed has learnt, as an artifact of its own: fetched from the daemon and written to a file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, NamedTuple, Union

import numpy as np

from .errors import SessionError

if TYPE_CHECKING:
    from ._layer import Layer

#: How often the daemon may ask for more room: it knows the room for good once it has written an artifact.
_MAX_TRIES = 3


class Exported(NamedTuple):
    """The artifact of a seed's kernel, with the weights that the seed had."""

    artifact: bytes
    #: Its SHA-256, in hexadecimal.
    sha256: str
    #: What the catalogue says of the kernel that was grafted.
    parent: Dict[str, Any]

    def save(self, path: Union[str, os.PathLike]) -> Saved:
        """Writes the artifact to ``path`` and what it comes from to ``{path}.parent``, where ``kasmina publish`` looks
        for it. Each is there whole or not at all. A signature in ``{path}.sig`` is of what was there before and is
        removed."""
        target = Path(path)
        note = target.with_name(target.name + ".parent")
        _write(target, self.artifact)
        target.with_name(target.name + ".sig").unlink(missing_ok=True)
        described = {"checksum": self.sha256, "parent": self.parent}
        _write(note, (json.dumps(described, indent=1) + "\n").encode())
        return Saved(target, self.sha256, note)


class Saved(NamedTuple):
    """An artifact that was written."""

    path: Path
    #: SHA-256 of what it holds, in hexadecimal.
    sha256: str
    #: Where it says what the artifact comes from.
    parent: Path


def exported(layer: Layer, seed: int) -> Exported:
    """Has the daemon write a seed's artifact into the arena, and copies it out."""
    client = layer.client

    def ask(offset: int, count: int) -> Dict[str, Any]:
        return client.request("export", layer=layer.number, seed=seed, offset=offset, bytes=count)

    count = ask(0, 0)["bytes"]
    for _ in range(_MAX_TRIES):
        block = client._allocate(count)
        reply = ask(block.offset, count)
        if reply["digest"] is not None and reply["bytes"] <= count:
            artifact = client._array(block, np.uint8, (reply["bytes"],)).tobytes()
            sha256 = hashlib.sha256(artifact).hexdigest()
            if sha256 != reply["digest"]:
                raise SessionError("the exported artifact is not what the daemon has written", code="session.protocol")
            return Exported(artifact, sha256, reply["parent"])
        count = reply["bytes"]
    raise SessionError("the daemon asks for more room for an artifact each time", code="session.protocol")


def _write(path: Path, content: bytes) -> None:
    """Puts a file into its place, whole and on the disk, or leaves what is there."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            # As a file that was simply opened: a temporary one is for its owner alone.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's mask, which can only be read from the system by setting it, and other threads make files too."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077
