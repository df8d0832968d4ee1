"""A process with several trainers, run by ``test_many_trainers.py``: ``python -m e2e.many ROLE OPTIONS``.

Its last line of output is a JSON object. Roles are ``train``, which compares every step with plain PyTorch, and
``flood``, which keeps passes under way until its standard input ends.
"""

import argparse
import collections
import json
import os
import sys
import threading

import torch
from torch import nn

import kasmina
import kasmina.torch
from .modules import TOKENS, twin

torch.set_num_threads(1)

ALPHAS = (0.5, 0.25, 0.125, 0.0625, 0.3, 0.2, 0.1, 0.05)
KERNELS = ("mlp", "attention", "mlp", "mlp", "attention", "mlp", "attention", "mlp")


def close(ours, truth, what):
    error = (ours - truth).norm() / truth.norm().clamp(min=1e-6)
    assert error < 1e-4, f"{what}: {error}"


def modules():
    """Two equal hosts, and the seeds' twins. Not made in threads, whose random numbers have one source."""
    ours, theirs = nn.Linear(8, 8), nn.Linear(8, 8)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, [twin(kernel).train() for kernel in KERNELS]


def train(socket, number, steps, made, barrier):
    """One trainer: a layer of eight seeds beside its twin, step by step."""
    generator = torch.Generator().manual_seed(number)
    host, theirs, twins = made
    with kasmina.connect(socket, arena_bytes=16 << 20, reconnect=False) as client:
        ours = kasmina.torch.SeededLayer(host, client, f"trainer-{number}", 8, "residual", TOKENS[1:])
        for seed, kernel, alpha in zip(ours.seeds, KERNELS, ALPHAS):
            seed.graft(kernel, alpha=alpha)
        # All train at once, and none is gone while others still begin.
        barrier.wait(300)
        mine = torch.optim.SGD(ours.parameters(), lr=0.05)
        plain = torch.optim.SGD([*theirs.parameters(), *(p for t in twins for p in t.parameters())], lr=0.05)
        for step in range(steps):
            x = torch.randn(TOKENS, generator=generator)
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            y = ours(a)
            truth = theirs(b) + sum(alpha * one(b) for alpha, one in zip(ALPHAS, twins))
            close(y, truth, f"trainer {number}, step {step}: output")
            for optimizer, output in ((mine, y), (plain, truth)):
                optimizer.zero_grad()
                (output - 1).square().mean().backward()
                optimizer.step()
            close(a.grad, b.grad, f"trainer {number}, step {step}: input gradient")
            assert not ours.last_failures
        for index, (seed, one) in enumerate(zip(ours.seeds, twins)):
            values = dict(seed.named_parameters())
            for name, parameter in one.named_parameters():
                close(values[name], parameter, f"trainer {number}: seed {index} {name}")
        barrier.wait(300)
    return {"passes": 2 * steps}


def flood(socket, number, batch, window, is_over, barrier):
    """One trainer with a window of passes always under way. Says how many came back."""
    with kasmina.connect(socket, arena_bytes=128 << 20, reconnect=False) as client, torch.no_grad():
        layer = kasmina.torch.SeededLayer(nn.Identity(), client, f"flood-{number}", 1, "residual", TOKENS[1:])
        layer.seeds[0].graft("mlp", alpha=0.5)
        x = torch.randn(batch, *TOKENS[1:], generator=torch.Generator().manual_seed(number))
        truth = layer(x)
        barrier.wait(300)
        pending, passes = collections.deque(), 0
        while not is_over.is_set():
            while len(pending) < window:
                pending.append(layer.submit(x))
            y = pending.popleft().result()
            passes += 1
            assert passes % 16 or torch.equal(y, truth)
        for one in pending:
            one.result()
    return {"passes": passes + len(pending)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("train", "flood"))
    parser.add_argument("--socket", required=True)
    parser.add_argument("--trainers", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--uid", type=int)
    options = parser.parse_args()
    if options.uid is not None:
        # Whatever has to be read is read by now.
        os.setgid(options.uid)
        os.setuid(options.uid)
    flooding = options.role == "flood"
    barrier = threading.Barrier(options.trainers + flooding)
    made = [None if flooding else modules() for _ in range(options.trainers)]
    is_over, results, errors = threading.Event(), [], []

    def run(n):
        number = options.first + n
        try:
            if flooding:
                results.append(flood(options.socket, number, options.batch, options.window, is_over, barrier))
            else:
                results.append(train(options.socket, number, options.steps, made[n], barrier))
        except BaseException as error:
            errors.append(f"trainer {number}: {error!r}")
            barrier.abort()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(options.trainers)]
    for thread in threads:
        thread.start()
    if flooding:
        try:
            barrier.wait(300)
            print("flooding", flush=True)
            sys.stdin.read()
        except threading.BrokenBarrierError:
            pass
        is_over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"errors": errors, "passes": sum(result["passes"] for result in results)}), flush=True)


if __name__ == "__main__":
    main()
