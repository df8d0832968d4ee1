"""Client of kasminad, the daemon that runs small compiled kernels beside a trainer.

``connect`` opens a session. ``kasmina.torch`` has the layers for PyTorch; without PyTorch,
``Client.open_layer`` runs passes on NumPy arrays. Import this before PyTorch, so that its threads leave their processors to
the daemon sooner (``_openmp``).
"""

from . import _openmp
from ._events import Events, watch
from ._export import Exported, Saved
from ._layer import Gradients, Layer, Pass
from ._life import Schedule
from ._operator import Operator
from ._session import Client, connect
from ._version import __version__
from .errors import (
    ArenaFull,
    ConnectionLost,
    ConnectionWarning,
    KasminaError,
    KernelError,
    OriginError,
    SeedFailureWarning,
    SessionError,
    TicketError,
    UsageError,
)

_openmp.settle()

__all__ = [
    "ArenaFull",
    "Client",
    "ConnectionLost",
    "ConnectionWarning",
    "Events",
    "Exported",
    "Gradients",
    "KasminaError",
    "KernelError",
    "Layer",
    "Operator",
    "OriginError",
    "Pass",
    "Saved",
    "Schedule",
    "SeedFailureWarning",
    "SessionError",
    "TicketError",
    "UsageError",
    "__version__",
    "connect",
    "watch",
]
