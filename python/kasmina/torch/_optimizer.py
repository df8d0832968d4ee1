"""What an optimizer has of a kernel."""

from __future__ import annotations

from typing import Iterable

import torch


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> None:
    """Takes parameters out of an optimizer, with all that it keeps of them: those of a kernel that is to be pruned, say.

    A group that has no others goes with them. A learning-rate scheduler counts the groups that were there when it was
    made: give a kernel a group of its own, behind those. Parameters that the optimizer does not have are passed over.
    """
    gone = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        kept = [parameter for parameter in group["params"] if id(parameter) not in gone]
        if len(kept) < len(group["params"]):
            if kept:
                group["params"][:] = kept
            else:
                optimizer.param_groups[:] = [each for each in optimizer.param_groups if each is not group]
    for parameter in [each for each in optimizer.state if id(each) in gone]:
        del optimizer.state[parameter]
