"""Layers for PyTorch: a host module with seeds that a daemon runs."""

from ._layer import SeededLayer
from ._seed import Seed

__all__ = ["Seed", "SeededLayer"]
