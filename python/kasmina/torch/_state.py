"""What outlives a session: checkpoints, pickles and copies of layers."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import nn

from ..errors import KasminaError, UsageError
from . import _gpu

if TYPE_CHECKING:
    from .._session import Client
    from ._seed import Seed

_FORMAT = 1
#: The element types that kernels compute in.
_OF_KERNELS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_session: "ContextVar[Optional[Client]]" = ContextVar("kasmina_restoring", default=None)

#: Attributes of a layer that belong to its session and are made anew in another.
_OF_THE_SESSION = frozenset(
    {"client", "remote", "_alone", "_arrived", "_changing", "_copies", "_device_type", "_drawn", "_failures", "_grafted", "_handle", "_host", "_hosted",
     "_learning", "_learnt", "_live", "_loading", "_moving", "_outstanding", "_passes", "_published", "_quiet", "_random", "_refused", "_repeats", "_return", "_running", "_submitted",
     "_unhosted", "_warned"}
)
#: Children that do as well.
_CHILDREN_OF_THE_SESSION = ("alphas", "seeds")


@contextlib.contextmanager
def restoring(client: Client) -> Iterator[None]:
    """Within it pickled layers are restored into this session: ``torch.load(path, weights_only=False)``."""
    token = _session.set(client)
    try:
        yield
    finally:
        _session.reset(token)


class Stateful(nn.Module):
    """The part of a layer that saves it, restores it, copies it and refuses to move it."""

    # What SeededLayer has, for the methods here.
    client: Client
    dtype: torch.dtype
    name: str
    seeds: Any
    alphas: Any
    remote: Any
    _open: Callable[..., None]
    _refresh: Callable[[], None]
    _settle_submitted: Callable[[], None]

    def get_extra_state(self) -> torch.Tensor:
        """Which kernels stand in the seeds, with their blend factors: JSON in a tensor of bytes, so that every
        format of checkpoints can hold it. A kernel that is still loading is not in it."""
        record = {
            "format": _FORMAT,
            "blend": self.blend,
            "dtype": _name(self.dtype),
            "input_shape": self.input_shape,
            "seeds": [seed._record() for seed in self.seeds],
        }
        return torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Grafts what a checkpoint names, by the kernels' ids; a seed that has its kernel already keeps it."""
        problems = self._restore(state)
        errors = self.__dict__.get("_load_errors")
        if errors is not None:
            errors.extend(problems)
        elif problems:
            raise KasminaError("; ".join(problems), code="session.restore")

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: Any, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        # Called before the children's, so that the seeds have their parameters when theirs are looked for.
        object.__setattr__(self, "_load_errors", errors)
        for seed in self.seeds:
            seed._refused = False
        try:
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        finally:
            object.__delattr__(self, "_load_errors")

    def _restore(self, state: Any) -> List[str]:
        where = f"layer {self.name!r}"
        try:
            record = json.loads(bytes(state.to(torch.uint8).tolist()).decode())
            seeds, shape = record["seeds"], record["input_shape"]
            if record["format"] != _FORMAT:
                return [f"{where}: the checkpoint is of format {record['format']}, this client reads {_FORMAT}"]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            return [f"{where}: its _extra_state in the checkpoint cannot be read: {error!r}"]
        problems = []
        for what, theirs, ours in (
            ("blend", record.get("blend"), self.blend), ("dtype", record.get("dtype"), _name(self.dtype))
        ):
            if theirs != ours:
                problems.append(f"{where}: the checkpoint is of {what}={theirs!r}, the layer was made with {ours!r}")
        grafted = [index for index, seed in enumerate(seeds) if seed]
        if grafted and grafted[-1] >= len(self.seeds):
            problems.append(
                f"{where}: the checkpoint has a kernel in seed {grafted[-1]}, the layer has {len(self.seeds)} seeds"
            )
        if problems:
            for seed in self.seeds:
                seed._refused = True
            return problems
        if shape is not None and self.input_shape is None:
            self.input_shape = tuple(shape)
        for index, seed in enumerate(self.seeds):
            try:
                seed._follow(seeds[index] if index < len(seeds) else None)
            except (KasminaError, KeyError, TypeError, ValueError) as error:
                seed._refused = True
                problems.append(f"{where}, seed {index}: {error}")
        return problems

    # moving

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        probe = fn(torch.empty(0, dtype=self.dtype, device="cpu"))
        device = _gpu.device_of(self.client.connection)
        if probe.device not in (device, torch.device("cpu")):
            how = ""
            if probe.device.type == "cuda" and self.client.device.startswith("cuda"):
                how = f': its session was opened for tensors on {device}, open one with kasmina.connect(device="{probe.device}")'
            raise UsageError(
                f"the daemon runs layer {self.name!r} on {self.client.device} and its input must lie on {device}: "
                f"it cannot be moved to {probe.device}{how}"
            )
        if probe.dtype is not self.dtype:
            if any(seed._grafted is not None or seed._loading is not None for seed in self.seeds):
                raise UsageError(
                    f"layer {self.name!r} has kernels of {self.dtype}, whose parameters lie in memory shared with "
                    "the daemon and cannot be cast: cast the model before grafting, prune its seeds first, or run "
                    "it under torch.autocast"
                )
            check_dtype(probe.dtype)
            self._settle_submitted()
            seeds, alphas, remote = self.seeds, self.alphas, self.remote
            self.dtype = probe.dtype
            self._open(self.client, len(seeds), self.input_shape)
            # Others hold them.
            self.seeds, self.alphas = seeds, alphas
            for seed in seeds:
                seed._clear()
            self._refresh()
            remote.close()
        return super()._apply(fn, recurse)

    # copies

    def __deepcopy__(self, memo: Any) -> Any:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made._revive(copy.deepcopy(self.__getstate__(), memo), self.client)
        # For whoever else is copied with it: an optimizer has the copy's parameters then.
        for ours, theirs in ((self.seeds, made.seeds), (self.alphas, made.alphas)):
            named = dict(theirs.named_parameters())
            memo.update({id(each): named[name] for name, each in ours.named_parameters() if name in named})
        self.__dict__.setdefault("_copies", weakref.WeakSet()).add(made)
        return made

    def __copy__(self) -> Any:
        raise UsageError(
            f"layer {self.name!r} and a shallow copy would share one place in the daemon: use copy.deepcopy"
        )

    def __getstate__(self) -> Dict[str, Any]:
        self._settle_submitted()
        kept = {name: value for name, value in self.__dict__.items() if name not in _OF_THE_SESSION}
        kept["_modules"] = {name: module for name, module in self._modules.items() if name not in _CHILDREN_OF_THE_SESSION}
        return {
            "format": _FORMAT,
            "attributes": kept,
            "seeds": [seed._record() for seed in self.seeds],
            "tensors": [
                {name: tensor.detach().clone() for name, tensor in seed.state_dict().items()} for seed in self.seeds
            ],
            "training": [seed.training for seed in self.seeds],
        }

    def __setstate__(self, state: Dict[str, Any]) -> None:
        client = _session.get()
        if client is None:
            raise UsageError(
                "a pickled SeededLayer needs a session to live in: load it within "
                "`with kasmina.torch.restoring(client):`, or save state_dict() and load that into a layer of the "
                "process's own client"
            )
        self._revive(state, client)

    def _revive(self, state: Dict[str, Any], client: Client) -> None:
        if state.get("format") != _FORMAT:
            raise UsageError(f"a layer pickled in format {state.get('format')} is not known to this client")
        nn.Module.__setstate__(self, state["attributes"])
        self.host = self._modules["host"]
        self._open(client, len(state["seeds"]), self._input_shape)
        problems = []
        for seed, record, tensors, training in zip(
            self.seeds, state["seeds"], state["tensors"], state["training"]
        ):
            seed.training = training
            try:
                seed._follow(record)
                seed.load_state_dict(tensors)
            except (KasminaError, RuntimeError) as error:
                problems.append(f"layer {self.name!r}, seed {seed.index}: {error}")
        if problems:
            raise KasminaError("; ".join(problems), code="session.restore")

    def _tell_copies(self) -> None:
        """Warns where a copy, most likely the one of an average of weights, no longer has the same kernels."""
        for made in list(self.__dict__.get("_copies", ())):
            ours, theirs = _kernels(self.seeds), _kernels(made.seeds)
            if ours != theirs:
                warnings.warn(
                    f"a copy of layer {self.name!r} has the kernels {list(theirs)} and the layer {list(ours)}: if it "
                    "averages weights (torch.optim.swa_utils), their parameters no longer pair up; graft into the "
                    "copy before the original, or load the layer's state_dict() into it",
                    UserWarning,
                    stacklevel=4,
                )


def _kernels(seeds: Any) -> Tuple[Optional[str], ...]:
    return tuple(seed.kernel for seed in seeds)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).split(".")[-1]


def check_dtype(dtype: torch.dtype) -> None:
    """Raises for an element type that no kernel has."""
    if dtype not in _OF_KERNELS:
        names = ", ".join(map(_name, _OF_KERNELS))
        raise UsageError(f"kernels compute in {names}, not in {_name(dtype)}: make or cast the layer to one of those")
