"""The same in Ray Train: each worker connects to the daemon of its node.

    python examples/ray_train.py --socket /run/kasmina/kasmina.sock

Needs `pip install "ray[train]"`, which this repository neither installs nor tests. What matters is where the
session is opened: in the worker's function, since a session belongs to one process and cannot be pickled.
"""
import argparse

import torch
import torch.nn.functional as F

from train_digits import build, read_digits


def worker(config: dict) -> None:
    import kasmina
    import kasmina.torch
    import ray.train
    import ray.train.torch

    train, _ = read_digits()
    with kasmina.connect(config["socket"]) as client:
        network, layer = build(
            lambda host: kasmina.torch.SeededLayer(
                host, client, name="middle", seeds=1, blend="residual", input_shape=(16, 8, 8)
            )
        )
        # Grafted before prepare_model, which wraps the network in DistributedDataParallel.
        layer.seeds[0].graft("conv3x3-bn-relu", alpha=0.3)
        model = ray.train.torch.prepare_model(network, move_to_device=False)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
        for number in range(config["epochs"]):
            order = torch.randperm(len(train.images), generator=torch.Generator().manual_seed(number))
            for batch in order.split(96)[:-1]:
                share = batch[rank::world]
                optimizer.zero_grad()
                loss = F.cross_entropy(model(train.images[share]), train.labels[share])
                loss.backward()
                optimizer.step()
            ray.train.report({"epoch": number, "loss": loss.item()})


def main() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--socket", default="/run/kasmina/kasmina.sock")
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    config = {"socket": options.socket, "epochs": options.epochs}
    TorchTrainer(worker, train_loop_config=config, scaling_config=ScalingConfig(num_workers=options.workers)).fit()


if __name__ == "__main__":
    main()
