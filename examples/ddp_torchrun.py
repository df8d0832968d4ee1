"""Trains a layer with two kernels on several processes.

    torchrun --nproc-per-node 2 examples/ddp_torchrun.py --socket /run/kasmina/kasmina.sock

`kasminad` must be running, with examples/kernels as its origin; all ranks of a node share it. With
`--socket /run/kasmina-{rank}.sock` each rank has a daemon of its own.

The data are the digits of examples/data. Each rank trains on its share of every batch; half-way two kernels are
grafted, on every rank in the same step, and the wrapper is made anew, so that it averages their gradients too.
"""
import argparse

# Before PyTorch, whose threads then leave their processors to the daemon sooner.
import kasmina
import kasmina.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train_digits import build, read_digits

BATCH = 96


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, digits, number: int) -> float:
    rank, world = dist.get_rank(), dist.get_world_size()
    # The same order on every rank, of which each takes its share.
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(number))
    total = 0.0
    batches = order.split(BATCH)[:-1]
    for batch in batches:
        share = batch[rank::world]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(digits.images[share]), digits.labels[share])
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--socket", default="/run/kasmina/kasmina.sock")
    arguments.add_argument("--epochs", type=int, default=6)
    options = arguments.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    train, test = read_digits()
    with kasmina.connect(options.socket.format(rank=dist.get_rank())) as client:
        network, layer = build(
            lambda host: kasmina.torch.SeededLayer(
                host, client, name="middle", seeds=2, blend="residual", input_shape=(16, 8, 8)
            )
        )
        model = DistributedDataParallel(network)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        for number in range(options.epochs):
            if number == options.epochs // 2:
                for seed, kernel in zip(layer.seeds, ("conv3x3-bn-relu", "squeeze-excite")):
                    seed.graft(kernel, alpha=0.3)
                    optimizer.add_param_group({"params": list(seed.parameters())})
                model = DistributedDataParallel(network)
            network.train()
            loss = epoch(model, optimizer, train, number)
            network.eval()
            with torch.no_grad():
                right = (network(test.images).argmax(1) == test.labels).float().mean().item()
            if dist.get_rank() == 0:
                kernels = [seed.kernel for seed in layer.seeds if seed.kernel]
                print(f"epoch {number}: loss {loss:.3f}, {right:.1%} of the test digits, kernels {kernels}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
