"""One rank of a distributed training: python -m e2e.ddp SOCKET RANK WORLD FOLDER KIND"""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import kasmina
import kasmina.torch

STEPS, BATCH = 6, 8


class Model(nn.Module):
    """With ``whole`` the daemon runs the host too, a blend factor is learnt and a seed learns behind the layer."""

    def __init__(self, client, whole=False):
        super().__init__()
        torch.manual_seed(11)
        self.before = nn.Linear(8, 8)
        self.layer = kasmina.torch.SeededLayer(
            nn.Linear(8, 8), client, "layer", 3, "convex", (3, 8), host="daemon" if whole else "trainer"
        )
        self.layer.seeds[0].graft("mlp", alpha=0.4)
        self.layer.seeds[1].graft("attention", alpha=0.3)
        if whole:
            self.layer.seeds[1].learn_alpha()
            self.layer.seeds[2].graft("mlp", train=True)

    def forward(self, x):
        return self.layer(torch.tanh(self.before(x)))


def train(model, rank, world, sharded=False):
    """Steps on this rank's share of the same batches; ``model`` averages gradients over the ranks if it should."""
    whole = any("alphas." in name for name, _ in model.named_parameters())
    shared = {name for name, _ in model.named_parameters() if ("layer." if whole else ".seeds.") in name}
    seeds = [p for name, p in model.named_parameters() if name in shared]
    others = [p for name, p in model.named_parameters() if name not in shared]
    # In groups of their own, because what FSDP has sharded and what it has not are tensors of two kinds.
    optimizer = torch.optim.SGD([{"params": seeds}, {"params": others}], 0.1, momentum=0.9)
    for step in range(STEPS):
        torch.manual_seed(100 + step)
        x, target = torch.randn(BATCH, 3, 8), torch.randn(BATCH, 3, 8)
        share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[share]), target[share]).backward()
        if sharded:
            kasmina.torch.average_gradients(model)
        nn.utils.clip_grad_norm_(seeds, 1.0)
        optimizer.step()


def wrap(module, kind):
    """Shards everything but the seeds, whose parameters must stay where the daemon reads them."""
    if kind.startswith("ddp"):
        return DistributedDataParallel(module)
    if kind == "fsdp2-whole":
        return fully_shard(module, ignored_params=set(module.layer.parameters()))
    if kind == "fsdp2":
        return fully_shard(module, ignored_params=set(module.layer.seeds.parameters()))
    return FullyShardedDataParallel(
        module, use_orig_params=True, device_id=torch.device("cpu"), ignored_modules=[module.layer.seeds]
    )


def weights(model, module, kind):
    """Every parameter in one piece."""
    if kind == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(model):
            return {
                name.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for name, p in model.named_parameters()
            }
    return {
        name: (p.full_tensor() if kind.startswith("fsdp2") and hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in module.named_parameters()
    }


def main():
    path, rank, world, folder, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world,
        timeout=timedelta(seconds=120),
    )
    with kasmina.connect(path) as client:
        module = Model(client, kind.endswith("whole"))
        model = wrap(module, kind)
        train(model, rank, world, sharded=not kind.startswith("ddp"))
        torch.save(weights(model, module, kind), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main()
