"""Artifacts that were offered to the daemon. The next daemon does not have them, so they are kept here."""

from __future__ import annotations

import threading
from typing import Dict, Optional, Tuple


class Offers:
    """Artifacts by the names of their kernels, each as long as somebody wants it. Threads may share it."""

    def __init__(self) -> None:
        # A finalizer may drop one in the middle of another's turn.
        self._lock = threading.RLock()
        self._held: Dict[str, Tuple[bytes, int]] = {}

    def keep(self, kernel: str, artifact: bytes) -> None:
        """Keeps an artifact, once more where it is kept already."""
        with self._lock:
            held, count = self._held.get(kernel, (artifact, 0))
            self._held[kernel] = held, count + 1

    def drop(self, kernel: str) -> None:
        """Somebody does not want it any more."""
        with self._lock:
            held = self._held.pop(kernel, None)
            if held is not None and held[1] > 1:
                self._held[kernel] = held[0], held[1] - 1

    def get(self, kernel: str) -> Optional[bytes]:
        """The artifact, if it is kept."""
        held = self._held.get(kernel)
        return None if held is None else held[0]
