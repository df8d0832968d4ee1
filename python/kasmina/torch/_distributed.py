"""What FullyShardedDataParallel leaves to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._layer import SeededLayer


def average_gradients(model: nn.Module, group: Any = None) -> None:
    """Averages the gradients of all seeds in ``model`` over the ranks of ``group``, in place, those of learnt blend
    factors and of hosts in the daemon included.

    For wrappers that leave the seeds out, such as FSDP with ``ignored_modules`` or ``ignored_params``: call it
    after the backward and before the optimizer's step, on every rank. DistributedDataParallel does this itself.
    Every rank must have the same kernels in the same seeds. A gradient that one rank lacks counts as zeros.
    """
    import torch.distributed as dist

    parameters = [
        parameter
        for module in model.modules()
        if isinstance(module, SeededLayer)
        for part in (module.seeds, module.alphas, module.host if module.host_place == "daemon" else None)
        if part is not None
        for parameter in part.parameters()
        if parameter.requires_grad
    ]
    if not parameters or dist.get_world_size(group) == 1:
        return
    for dtype in sorted({parameter.dtype for parameter in parameters}, key=str):
        alike = [parameter for parameter in parameters if parameter.dtype is dtype]
        flat = torch.cat(
            [torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in alike]
        )
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for parameter, gradient in zip(alike, flat.split([p.numel() for p in alike])):
            if parameter.grad is None:
                parameter.grad = gradient.reshape(parameter.shape).clone()
            else:
                parameter.grad.copy_(gradient.reshape(parameter.shape))
