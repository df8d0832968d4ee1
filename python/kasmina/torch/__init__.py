"""Layers for PyTorch: a host module with seeds that a daemon runs."""

from ._distributed import average_gradients
from ._future import Pending
from ._layer import SeededLayer
from ._optimizer import forget
from ._seed import Seed
from ._state import restoring

__all__ = ["Pending", "Seed", "SeededLayer", "average_gradients", "forget", "restoring"]
