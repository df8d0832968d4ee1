"""A layer's own transform, handed to the daemon: it runs there beside the seeds, in the same call.

The module stays the trainer's. Its parameters and buffers are the same objects as before and lie in memory that the
daemon reads, so optimizers go on, and the module can be run here at any time on what it has come to.
"""

from __future__ import annotations

import copy
import io
import itertools
import logging
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple

import torch
from torch import nn

from .._layer import Entry, Grafted, Layer
from ..errors import ConnectionLost, KasminaError, KernelError, SeedFailureWarning, UsageError
from ._shared import Places, Row, move

if TYPE_CHECKING:
    from ._layer import SeededLayer
    from ._return import Arrival

#: Where a layer's own transform runs.
PLACES = ("trainer", "daemon")
#: Held while a module is handed over.
handing_over = threading.RLock()
#: The batch that a module is exported with; the exported program takes any.
_BATCH = 2


class Hosted:
    """A module that the daemon runs in the last slot of a layer."""

    def __init__(self, layer: SeededLayer) -> None:
        remote, shape = layer.remote, layer.input_shape
        assert remote.host is not None and shape is not None
        self.module: nn.Module = layer.host
        self.index = remote.host
        self._layer = weakref.ref(layer)
        self._under_autocast: Dict[Any, torch.dtype] = {}
        try:
            artifact, self._sizes = export(self.module, shape, layer.dtype)
        except Exception as error:
            raise UsageError(f"{_cannot(layer)} cannot be exported, {_short(error)}: {_INSTEAD}") from error
        try:
            self.kernel = layer.client.offer(artifact)
            # It is forgotten with this.
            weakref.finalize(self, layer.client.withdraw, self.kernel).atexit = False
            grafted = remote.graft(self.index, self.kernel, 0.0, shape)
        except KernelError as error:
            raise KernelError(
                f"{_cannot(layer)} is refused: {error.message}: {_INSTEAD}", code=error.code, kernel=error.kernel
            ) from error
        self._move_to(grafted)

    def _move_to(self, grafted: Grafted) -> None:
        """Has the module's tensors lie in the memory of a kernel that was grafted."""
        rows = self._rows(grafted)
        move(grafted, [(tensor, entry) for _, _, tensor, entry in rows])
        self._take(Places(grafted, rows), grafted, rows)

    def _take(self, places: Places, grafted: Grafted, rows: List[Row]) -> None:
        self._places, self._grafted = places, grafted
        #: Its parameters, in the order of the kernel's.
        self.tensors: List[Any] = [tensor for _, _, tensor, _ in rows[: len(grafted.parameters)]]
        self._modes = list(self.module.modules())
        layer = self._layer()
        if layer is not None:
            layer._running = None

    @property
    def present(self) -> bool:
        """Whether it is in the daemon, and not on its way back after the daemon's death."""
        layer = self._layer()
        return layer is not None and self._grafted.client is layer.remote.client

    def type_under_autocast(self, x: torch.Tensor) -> torch.dtype:
        """Of what the module itself would give for an input like this one under the autocast that is on now: asked of a
        copy of it, once for each type."""
        key = x.dtype, torch.get_autocast_dtype(x.device.type)
        found = self._under_autocast.get(key)
        if found is None:
            twin = copy.deepcopy(self.module).eval()
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
                found = self._under_autocast[key] = twin(x.new_zeros(_BATCH, *x.shape[1:])).dtype
        return found

    def output_of(self, x: torch.Tensor) -> Tuple[int, ...]:
        """The shape of its output for an input."""
        return (x.shape[0], *self._sizes)

    def settle(self, training: bool) -> None:
        """Before a pass: what the daemon will read and do is what the module is here."""
        if not self._places.kept():
            # What something has moved, or put another tensor in the place of, lies in shared memory again.
            rows = self._rows(self._grafted)
            self._take(self._places.brought_back(rows), self._grafted, rows)
        for module in self._modes:
            if module.training is not training:
                raise UsageError(
                    f"a host in the daemon runs as a whole in one mode, and a {type(module).__name__} of it is in "
                    f"{'training' if module.training else 'eval'} mode while its layer is not: {_INSTEAD}"
                )

    def _rows(self, grafted: Grafted) -> List[Row]:
        """The module's tensors, each with its place in a memory file."""
        rows: List[Row] = []
        seen: Dict[int, str] = {}
        for entry, kind in _entries(grafted):
            table, name = _table(self.module, entry.name, kind)
            tensor = table.get(name)
            if tensor is None:
                raise UsageError(f"the host has no {entry.name} any more, which the daemon runs it with: {_INSTEAD}")
            if tuple(tensor.shape) != entry.shape or str(tensor.dtype) != f"torch.{entry.dtype}":
                raise UsageError(
                    f"{entry.name} of the host was of {list(entry.shape)}, {entry.dtype} when it was handed to the "
                    f"daemon and is of {list(tensor.shape)}, {tensor.dtype} now: make the layer anew"
                )
            other = seen.setdefault(id(tensor), entry.name)
            if other != entry.name:
                raise UsageError(
                    f"{other} and {entry.name} of the host are one tensor, which cannot lie in two places of the "
                    f"daemon's memory: {_INSTEAD}"
                )
            rows.append((table, name, tensor, entry))
        return rows

    # coming back with the daemon, as a seed does

    def _restore(self, remote: Layer) -> None:
        """Nothing but the kernel is to be restored."""

    def _arrive(self, arrival: Arrival) -> bool:
        """Takes over what came of it after the daemon's death."""
        layer, error = self._layer(), arrival.error
        if layer is None or layer._hosted is not self or self._grafted is not arrival.before:
            return False
        if arrival.grafted is not None:
            try:
                self._move_to(arrival.grafted)
                return True
            except ConnectionLost:
                raise
            except KasminaError as failed:
                error = failed
        warnings.warn(
            f"layer {layer.name!r} is its host alone, in the trainer, after the daemon's return"
            f"{' until the daemon takes it' if arrival.again else ''}: {error}",
            SeedFailureWarning,
            stacklevel=5,
        )
        return False


def export(module: nn.Module, shape: Tuple[int, ...], dtype: torch.dtype) -> Tuple[bytes, Tuple[int, ...]]:
    """The module as a PT2 archive for any batch, and the sizes of its output without the batch.

    It is exported in training mode, which says all of it; the daemon makes eval mode of that where it is asked to. What
    lies on a GPU is exported from a copy that does not: the archive is to name no device.
    """
    tensors = itertools.chain(module.parameters(), module.buffers())
    if any(tensor.device.type != "cpu" for tensor in tensors):
        module = copy.deepcopy(module).cpu()
    before = {each: each.training for each in module.modules()}
    # What is frozen now may be trained later, and must have its gradient then.
    frozen = [each for each in module.parameters() if each.is_floating_point() and not each.requires_grad]
    batch = torch.export.Dim("batch", min=1)
    # What is made on the way is nobody's business, and neither the generator nor a mode may show that this was done.
    quiet = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, quiet.disabled = quiet.disabled, True
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.train()
            for parameter in frozen:
                parameter.requires_grad_(True)
            example = torch.zeros(_BATCH, *shape, dtype=dtype, device="cpu")
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
            archive = io.BytesIO()
            torch.export.save(program, archive)
    finally:
        quiet.disabled = level
        for each, training in before.items():
            each.training = training
        for parameter in frozen:
            parameter.requires_grad_(False)
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    values = [getattr(each, "meta", {}).get("val") for each in output.args[0]]
    # Buffers that it updates come first.
    result = values[-1]
    if len(program.graph_signature.user_outputs) != 1 or not isinstance(result, torch.Tensor) or not result.dim():
        raise UsageError("it gives something else than one tensor")
    sizes = result.shape[1:]
    if not all(isinstance(size, int) for size in sizes):
        raise UsageError(f"the sizes of its output, {list(sizes)}, depend on the batch")
    return archive.getvalue(), tuple(sizes)


def _entries(grafted: Grafted) -> Iterator[Tuple[Entry, str]]:
    for entry in grafted.parameters:
        yield entry, "_parameters"
    for entry in grafted.buffers:
        yield entry, "_buffers"


def _table(module: nn.Module, dotted: str, kind: str) -> Tuple[Dict[str, Any], str]:
    """Where a module of the tree keeps a tensor."""
    *path, name = dotted.split(".")
    for part in path:
        module = module._modules.get(part) or nn.Module()
    return getattr(module, kind), name


_INSTEAD = 'make the layer with host="trainer", which runs any module'


def _cannot(layer: SeededLayer) -> str:
    return f"the host of layer {layer.name!r}, a {type(layer.host).__name__},"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"
