"""Tensors that lie in memory shared with the daemon."""

from __future__ import annotations

import warnings
from typing import Any, Dict, Iterable, List, Tuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from .._layer import Entry, Grafted
from .._cuda import DeviceMemory
from ..errors import UsageError
from . import _gpu


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
                # Tried on a copy: a function may move the storage under the tensor itself, as share_memory_ does.
                tried = tensor.detach().clone()
                place = tried.data_ptr()
                moved = fn(tried)
                if moved.data_ptr() != place or moved.dtype != tensor.dtype:
                    raise UsageError(
                        "the parameters of a grafted kernel lie in memory shared with the daemon and can be neither "
                        "moved, shared with other processes, cast nor laid out anew (memory_format=): do that to the "
                        "model before grafting, or prune the seed first"
                    )
                fn(tensor.detach())
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        tables = self.__dict__
        if tables.get("_parameters", {}).get(name) is not None:
            _refuse_to_replace(name)
        if tables.get("_buffers", {}).get(name) is not None:
            raise UsageError(
                f"{name} is a buffer of a grafted kernel and lies in memory shared with the daemon, which would never "
                f"see another tensor in its place: write into it, {name}.copy_(…)"
            )
        if isinstance(value, nn.Module) or name in tables.get("_modules", ()):
            _refuse_to_add(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._parameters or name in self._buffers or name in self._modules:
            _refuse_to_replace(name)
        super().__delattr__(name)

    def add_module(self, name: str, module: Any) -> None:
        """Refused: a seed has what its kernel has."""
        _refuse_to_add(name)

    register_module = add_module

    def register_parameter(self, name: str, param: Any) -> None:
        """Refused: a seed has what its kernel has."""
        _refuse_to_add(name)

    def register_buffer(self, name: str, *_: Any, **__: Any) -> None:
        """Refused: a seed has what its kernel has."""
        _refuse_to_add(name)

    def __deepcopy__(self, memo: Any) -> Any:
        raise UsageError(
            "a grafted seed cannot be copied, its parameters are shared with the daemon: use state_dict()"
        )


def _refuse_to_add(name: str) -> None:
    raise UsageError(
        f"{name} cannot be put into a grafted seed: the daemon runs the kernel with the parameters, buffers and modules "
        "that it has. Pruning of weights, weight_norm, adapters and the like have to be part of the kernel, or of the "
        "layer's host"
    )


def _refuse_to_replace(name: str) -> None:
    raise UsageError(
        f"{name} is a parameter of a grafted kernel and lies in memory shared with the daemon: something would put "
        "another tensor in its place, which the daemon would never see. Wrappers that shard, flatten or "
        "reparametrise modules, such as FSDP, must leave the layer's seeds out"
    )


def shared_tensor(grafted: Grafted, entry: Entry) -> torch.Tensor:
    """A tensor over the memory a parameter or buffer lies in; keeps that mapped as long as it lives."""
    dtype, memory = getattr(torch, entry.dtype), grafted.memory
    if entry.elements == 0:
        return torch.empty(entry.shape, dtype=dtype, device=_gpu.device_of(grafted.client))
    if isinstance(memory, DeviceMemory):
        device = _gpu.device_of(grafted.client)
        return _gpu.over(device, memory.address + entry.offset, dtype, entry.shape, memory)
    # Grafting may happen in inference mode; the parameters are to be trained all the same.
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        flat = torch.frombuffer(memory, dtype=dtype, count=entry.elements, offset=entry.offset)
        return flat.view(entry.shape)


Row = Tuple[Dict[str, Any], str, Any, Entry]


class Places:
    """Where the tensors of a kernel lie in its memory file: those that stand in modules' tables, ``rows`` of the table,
    the name, the tensor and its entry. Whether they still do is asked before every pass."""

    def __init__(self, grafted: Grafted, rows: Iterable[Row]) -> None:
        self._grafted = grafted
        self._rows: List[Row] = [row for row in rows if row[3].elements]
        self._tensors = [tensor for _, _, tensor, _ in self._rows]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._slots = [(*row[:3], pointer) for row, pointer in zip(self._rows, self._pointers)]
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in self._tensors]

    def kept(self) -> bool:
        """Whether nothing was moved, or has another tensor in its place."""
        for table, name, tensor, pointer in self._slots:
            if table.get(name) is not tensor or tensor.data_ptr() != pointer:
                return False
        return True

    def brought_back(self, rows: Iterable[Row]) -> Places:
        """The tensors of ``rows``, with the values they have, in the places of the same entries.

        Whoever else looks at what lay there (an average that was swapped in by ``.data``, the parameter that
        ``functional_call`` puts back) keeps its values, in memory of its own.
        """
        rows = [row for row in rows if row[3].elements]
        with torch.inference_mode(False), torch.no_grad():
            wrong = [
                (row, old)
                for row, old, pointer in zip(rows, self._tensors, self._pointers)
                if row[2] is not old or old.data_ptr() != pointer
            ]
            for (_, _, tensor, _), storage, pointer in zip(rows, self._storages, self._pointers):
                if tensor.data_ptr() != pointer:
                    _vacate(storage, pointer)
            wider = [
                StorageWeakRef(row[2].untyped_storage())
                for row, _ in wrong
                if row[2].untyped_storage().nbytes() > row[3].nbytes
            ]
            move(self._grafted, [(row[2], row[3]) for row, _ in wrong])
            for row, old in wrong:
                # A backward that was to read what lay there must not read this.
                for each in {id(row[2]): row[2], id(old): old}.values():
                    _count_version(each)
        if any(not storage.expired() for storage in wider):
            warnings.warn(
                "parameters that a daemon reads were made parts of a larger tensor, as vector_to_parameters does: they "
                "have its values, in memory shared with the daemon again, and what is written to that tensor from now "
                "on does not reach them",
                UserWarning,
                stacklevel=2,
            )
        return Places(self._grafted, rows)


def _vacate(storage: StorageWeakRef, pointer: int) -> None:
    """Gives whoever still looks at a tensor's place the values that lie there, elsewhere."""
    held = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)
    if held is not None and held.data_ptr() == pointer:
        if held.device.type != "cpu":
            raise UsageError(
                "a parameter or buffer that lay in a GPU's memory shared with the daemon was replaced, and something "
                "still holds what lay there, which cannot be moved under it there: write into the tensor (copy_) "
                "instead of putting another in its place (.data =, functional_call)"
            )
        try:
            # The one way to move a storage under all that hold it.
            held.share_memory_()
        except RuntimeError as error:
            raise UsageError(
                "a tensor that lay in memory shared with the daemon was replaced, something still holds it, and there "
                f"is no room for a copy of it: {error}"
            ) from error


def _count_version(tensor: torch.Tensor) -> None:
    """Has autograd know that a tensor is not what it was."""
    if tensor.is_inference():
        return
    try:
        torch.autograd.graph.increment_version(tensor)
    except AttributeError:
        with torch.no_grad():
            tensor.copy_(tensor.clone())


def move(grafted: Grafted, tensors: Iterable[Tuple[torch.Tensor, Entry]]) -> None:
    """Has the same tensors, with the values they have, lie in a memory file."""
    with torch.inference_mode(False), torch.no_grad():
        for tensor, entry in tensors:
            place = shared_tensor(grafted, entry)
            place.copy_(tensor)
            tensor.data = place
