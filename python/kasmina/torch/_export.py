"""What a seed has learnt, given back: weights for the module that its kernel was made of, or a kernel of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Union

import torch
from torch import nn

from .._export import Saved
from ..errors import ConnectionLost, UsageError

if TYPE_CHECKING:
    from .._layer import Layer
    from ._seed import Seed


class Exporting(nn.Module):
    """The part of a layer that exports its seeds."""

    # What SeededLayer has, for the methods here.
    name: str
    remote: Layer
    seeds: Any
    _settle_submitted: Callable[[], None]

    def export_seed(self, seed: Union[int, Seed], module: Optional[nn.Module] = None) -> Dict[str, torch.Tensor]:
        """The weights that a seed has now, as the ``state_dict`` of the module that its kernel was made of:
        ``original.load_state_dict(layer.export_seed(0))``.

        ``seed`` is a seed of this layer or its number. The tensors are copies in ordinary memory, of the element
        types that the artifact has; a seed's tensors cannot have others, because ``layer.to(dtype)`` refuses to cast
        a layer that has kernels. Tied tensors are there under each of their names, buffers that are not persistent
        and constants under none. TorchScript archives do not tell which buffers are persistent: with ``module``, the
        original or one like it, its ``state_dict()`` decides what is in it, and what does not fit it is an error.

        The daemon is not asked: it works while that is away, and after it has given a kernel up, as long as the
        tensors are here. Raises ``UsageError`` for a seed that has none.
        """
        found = self._seed_of(seed)
        self._settle_passes()
        weights: Dict[str, torch.Tensor] = {}
        left_out: List[str] = []
        for entry in found._entries:
            owner, name = found._container(entry.name)
            tensor = owner._parameters.get(name)
            if tensor is None:
                tensor = owner._buffers[name]
            with torch.no_grad(), torch.inference_mode(False):
                copied = tensor.detach().clone()
            weights.update({name: copied for name in (entry.name, *entry.aliases)})
            if not entry.persistent:
                left_out += [entry.name, *entry.aliases]
        if module is not None:
            return _as_in(module, weights)
        return {name: tensor for name, tensor in weights.items() if name not in left_out}

    def save_seed(self, seed: Union[int, Seed], path: Union[str, os.PathLike]) -> Saved:
        """Writes the artifact of a seed's kernel with the weights that the seed has now: a TorchScript archive for
        ``torch.jit.load``, or a PT2 archive for ``torch.export.load``, as the kernel was. Returns where it is, with its
        SHA-256.

        Program, names and declared shapes are the kernel's own. What it comes from is written to ``{path}.parent``,
        and ``kasmina publish {path} --name ID`` makes a kernel of it that every session can graft. It has no
        signature: the kernel's was over other bytes. Call it between passes.

        The daemon has the artifact, so it must be there. Raises ``UsageError`` for a seed without a kernel
        and for one of whose parameters was replaced,
        ``KernelError`` where the artifact cannot hold the weights (tensors that share memory in it, and are no longer
        equal), ``ArenaFull`` and ``OSError``.
        """
        found = self._seed_of(seed)
        if found._grafted is None:
            raise UsageError(
                f"the kernel of seed {found.index} of layer {self.name!r} could not be had again after the daemon's "
                "return, and the daemon has its artifact: take the weights alone with export_seed",
                layer=self.remote.number,
                seed=found.index,
            )
        self._settle_passes()
        if self.remote.client.connected and not found.present:
            raise UsageError(
                f"the kernel of seed {found.index} of layer {self.name!r} is on its way back into the daemon, which "
                "has its artifact: call the layer until seed.present, or take the weights alone with export_seed",
                layer=self.remote.number,
                seed=found.index,
                kernel=found.kernel,
            )
        # The daemon reads its memory file: what was moved out of it (``p.data = …``) belongs there first.
        found._settle_places()
        if self.remote.client.gpu is not None:
            # What an optimizer has handed to it is to be there.
            self.remote.client.gpu.synchronize()
        return self.remote.export(found.index).save(path)

    def _seed_of(self, seed: Union[int, Seed]) -> Seed:
        index = seed if isinstance(seed, int) else getattr(seed, "index", None)
        if isinstance(seed, bool) or not isinstance(index, int) or not 0 <= index < len(self.seeds):
            host = ""
            if self.remote.host is not None:
                host = "; its host is layer.host, a module of yours with a state_dict() of its own"
            raise UsageError(f"layer {self.name!r} has the seeds 0 to {len(self.seeds) - 1}, and no {seed!r}{host}")
        found = self.seeds[index]
        if found is not seed and not isinstance(seed, int):
            raise UsageError(f"seed {index} was given of another layer than {self.name!r}")
        if not found._entries:
            raise self._dormant(found)
        return found

    def _dormant(self, seed: Seed) -> UsageError:
        return UsageError(
            f"seed {seed.index} of layer {self.name!r} has no kernel, and so no weights: graft one first",
            layer=self.remote.number,
            seed=seed.index,
        )

    def _settle_passes(self) -> None:
        try:
            self._settle_submitted()
        except ConnectionLost:
            pass  # they are over, and the tensors are here


def _as_in(module: nn.Module, weights: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """The weights that a module's ``state_dict`` has, in its order."""
    there = module.state_dict()
    problems = [f"{name} is not in the artifact" for name in there if name not in weights and not _is_extra(name)]
    known = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    problems += [f"{name} is not in the module" for name in weights if name not in there and name not in known]
    for name, ours in there.items():
        if name in weights and (weights[name].shape, weights[name].dtype) != (ours.shape, ours.dtype):
            problems.append(
                f"{name} is {_kind(weights[name])} in the artifact and {_kind(ours)} in the module"
            )
    if problems:
        raise UsageError("the kernel was not made of a module like that one: " + "; ".join(problems))
    return {name: weights.get(name, ours) for name, ours in there.items()}


def _is_extra(name: str) -> bool:
    """Whether it is what a module keeps beside its tensors, which stays the module's own."""
    return name.rsplit(".", 1)[-1] == "_extra_state"


def _kind(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).split('.')[-1]}"
