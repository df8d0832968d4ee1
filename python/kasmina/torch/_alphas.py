"""Blend factors that are learnt: parameters of the layer, given to the daemon with every forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional, Sequence

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ._shared import InPlace

if TYPE_CHECKING:
    from .._layer import Grafted
    from ._layer import SeededLayer


class Alphas(InPlace):
    """A layer's learnt blend factors by the number of the seed, ``alphas.0`` and so on in a ``state_dict``: beside the
    seeds and not in them, where any name may be one of a kernel's own parameters. They lie in the host's memory,
    whatever the layer does."""

    def of(self, index: int) -> Optional[nn.Parameter]:
        """The parameter of a seed, if its blend factor is learnt."""
        return self._parameters.get(str(index))

    def learn(self, index: int, value: float) -> nn.Parameter:
        """Makes a seed's blend factor a parameter. One that is one already gets the value."""
        parameter = self.of(index)
        if parameter is None:
            with torch.inference_mode(False):
                parameter = nn.Parameter(torch.tensor(float(value), dtype=torch.float32, device="cpu"))
            self._parameters[str(index)] = parameter
        else:
            with torch.no_grad():
                parameter.fill_(value)
        return parameter

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        # Every forward reads their values here, which must not wait for a GPU.
        probe = fn(torch.empty(0, dtype=torch.float32, device="cpu"))
        return self if probe.device.type != "cpu" else super()._apply(fn, recurse)

    def forget(self, index: int) -> None:
        """Has a seed's blend factor be a number again. An optimizer may go on holding the parameter."""
        self._parameters.pop(str(index), None)


def value_of(parameter: torch.Tensor) -> float:
    """A learnt blend factor as it is used."""
    return min(max(float(parameter.detach()), 0.0), 1.0)


def alphas_of(layer: SeededLayer) -> List[torch.Tensor]:
    """The learnt blend factors of the seeds that are blended, in the order of the seeds, clamped."""
    return [clamped(parameter) for _, parameter in layer._learnt]


def clamped(parameter: torch.Tensor) -> torch.Tensor:
    """A blend factor within [0, 1]. The gradient passes where the parameter lies there, ends included: with
    ``torch.clamp``, which in some versions of PyTorch has none at its ends, no optimizer would move it off 0."""
    is_out = (parameter < 0.0) | (parameter > 1.0)
    return torch.where(is_out, parameter.detach().clamp(0.0, 1.0), parameter)


def given(layer: SeededLayer, seeds: int, alphas: Sequence[torch.Tensor]) -> np.ndarray:
    """The blend factors of one pass as the daemon reads them: one for each seed, NaN for the daemon's own."""
    values = np.full(seeds, np.nan, np.float32)
    for (index, _), alpha in zip(layer._learnt, alphas):
        value = alpha.item()
        if value != value:
            raise UsageError(
                f"the learnt alpha of seed {index} of layer {layer.name!r} is not a number: an optimizer has made it so",
                seed=index,
            )
        values[index] = value
    return values


class Learning:
    """The part of a seed whose blend factor may be learnt."""

    # What Seed has, for the methods here.
    index: int
    alpha: float
    _fossil: Optional[bool]
    _grafted: Optional[Grafted]
    _layer: SeededLayer
    _wish: Any

    @property
    def alpha_parameter(self) -> Optional[nn.Parameter]:
        """The blend factor as a parameter of the layer, after ``learn_alpha``; else None."""
        return self._layer.alphas.of(self.index)

    def learn_alpha(self, initial: Optional[float] = None) -> nn.Parameter:
        """Makes the blend factor a parameter, which an optimizer may be given: a scalar of float32, by default with the
        present value, ``alphas.<index>`` in the layer's ``state_dict``.

        Every forward uses its value at that time, clamped to [0, 1], and every backward gives it its gradient, at 0
        and 1 too; beyond them there is none. It ends with ``fix_alpha``, ``blend``, ``fossilize``, ``prune`` and the
        next graft, and ends a schedule.
        """
        if self._grafted is None or self._fossil is not None:
            why = "has no kernel: graft one first" if self._grafted is None else "is a fossil, whose alpha is 1 for good"
            raise UsageError(f"seed {self.index} of layer {self._layer.name!r} {why}", seed=self.index)
        # Told to the daemon too: a schedule ends with it.
        self.alpha = self.alpha if initial is None else initial
        parameter = self._layer.alphas.learn(self.index, self._wish().alpha)
        self._layer._refresh()
        return parameter

    def fix_alpha(self) -> None:
        """Makes a blend factor that is learnt a number again, the one that it is now."""
        if self.alpha_parameter is not None:
            value = self.alpha
            self._layer.alphas.forget(self.index)
            if self._grafted is not None:
                self.alpha = value
