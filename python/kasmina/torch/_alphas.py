"""Blend factors that are learnt: parameters of the layer, given to the daemon with every forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence

import numpy as np
import torch
from torch import nn

from ..errors import UsageError
from ._shared import InPlace

if TYPE_CHECKING:
    from ._layer import SeededLayer


class Alphas(InPlace):
    """A layer's learnt blend factors by the number of the seed, ``alphas.0`` and so on in a ``state_dict``: beside the
    seeds and not in them, where any name may be one of a kernel's own parameters."""

    def of(self, index: int) -> Optional[nn.Parameter]:
        """The parameter of a seed, if its blend factor is learnt."""
        return self._parameters.get(str(index))

    def learn(self, index: int, value: float) -> nn.Parameter:
        """Makes a seed's blend factor a parameter. One that is one already gets the value."""
        parameter = self.of(index)
        if parameter is None:
            with torch.inference_mode(False):
                parameter = nn.Parameter(torch.tensor(float(value), dtype=torch.float32))
            self._parameters[str(index)] = parameter
        else:
            with torch.no_grad():
                parameter.fill_(value)
        return parameter

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
