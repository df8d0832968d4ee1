"""Tensors that lie in memory shared with the daemon."""

from __future__ import annotations

import warnings
from typing import Any, Iterable, Tuple

import torch
from torch import nn

from .._layer import Entry, Grafted
from ..errors import UsageError


class InPlace(nn.Module):
    """A module whose tensors are loaded into and never replaced: others hold them."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        # assign=True would put other tensors in their place.
        metadata = {**(local_metadata or {}), "assign_to_params_buffers": False}
        if not self.__dict__.get("_refused"):
            super()._load_from_state_dict(state_dict, prefix, metadata, *rest)


class Shared(InPlace):
    """A module whose tensors must stay where they are: the daemon reads them there."""

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        for child in self.children():
            child._apply(fn)
        with torch.no_grad():
            for tensor in [*self._parameters.values(), *self._buffers.values()]:
                if tensor is None:
                    continue
                # Taken first: a function may move the storage under the tensor itself.
                place = tensor.data_ptr()
                moved = fn(tensor.detach())
                if moved.data_ptr() != place or moved.dtype != tensor.dtype:
                    raise UsageError(
                        "the parameters of a grafted kernel lie in memory shared with the daemon and can be "
                        "neither moved nor cast: move the model before grafting, or prune the seed first"
                    )
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_parameters", {}).get(name) is not None:
            _refuse_to_replace(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._parameters:
            _refuse_to_replace(name)
        super().__delattr__(name)

    def __deepcopy__(self, memo: Any) -> Any:
        raise UsageError(
            "a grafted seed cannot be copied, its parameters are shared with the daemon: use state_dict()"
        )


def _refuse_to_replace(name: str) -> None:
    raise UsageError(
        f"{name} is a parameter of a grafted kernel and lies in memory shared with the daemon: something would put "
        "another tensor in its place, which the daemon would never see. Wrappers that shard, flatten or "
        "reparametrise modules, such as FSDP, must leave the layer's seeds out"
    )


def shared_tensor(grafted: Grafted, entry: Entry) -> torch.Tensor:
    """A tensor over the memory a parameter or buffer lies in; keeps that mapped as long as it lives."""
    dtype = getattr(torch, entry.dtype)
    if entry.elements == 0:
        return torch.empty(entry.shape, dtype=dtype)
    # Grafting may happen in inference mode; the parameters are to be trained all the same.
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(grafted.memory, dtype=dtype, count=entry.elements, offset=entry.offset)
        return flat.view(entry.shape)


def move(grafted: Grafted, tensors: Iterable[Tuple[torch.Tensor, Entry]]) -> None:
    """Has the same tensors, with the values they have, lie in a memory file."""
    with torch.inference_mode(False), torch.no_grad():
        for tensor, entry in tensors:
            place = shared_tensor(grafted, entry)
            place.copy_(tensor)
            tensor.data = place
