"""What may happen between submit and result, and in a forked child."""

import os

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .composition import pair
from .modules import TOKENS


@pytest.mark.parametrize("host", ("trainer", "daemon"))
def test_a_step_before_the_result_is_an_error(client, host):
    layer, _, shape = pair(client, ["mlp"], "residual", [0.5], host=host)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.randn(shape)).sum().backward()
    pending = layer.submit(torch.randn(shape))
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation.*between submit and result"):
        pending.result()
    # In this order there is nothing wrong.
    layer.submit(torch.randn(shape)).result().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("alpha", (0.0, 0.5))
@pytest.mark.parametrize("make", (nn.Identity, lambda: nn.Flatten(2)))
def test_x_may_be_written_to_at_once_whatever_the_host_returns(client, make, alpha):
    layer = kasmina.torch.SeededLayer(make(), client, blend="residual", input_shape=TOKENS[1:])
    layer.seeds[0].graft("mlp", alpha=alpha)
    x = torch.randn(TOKENS)
    truth = layer(x).detach().clone()
    pending = layer.submit(x)
    x.zero_()
    assert torch.equal(pending.result(), truth)


def test_x_that_was_written_to_is_not_the_hosts_where_the_daemon_is_gone(daemon, client):
    layer, _, shape = pair(client, ["mlp"], "residual", [0.5], host="daemon")
    x = torch.randn(shape)
    layer(x)
    daemon.process.send_signal(19)
    pending = layer.submit(x)
    x.zero_()
    daemon.kill()
    with pytest.warns(kasmina.ConnectionWarning), pytest.raises(kasmina.ConnectionLost):
        pending.result()


def in_child(work):
    """What it says, or what it raises, in a forked process."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = repr(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    with open(reads) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("host", ("trainer", "daemon"))
def test_a_forked_child_is_told_and_does_not_train_the_host_alone(client, host):
    layer, _, shape = pair(client, ["mlp"], "convex", [0.5], host=host)
    x = torch.randn(shape)
    truth = layer(x)
    for work in (lambda: layer(x), lambda: layer.submit(x).result(), lambda: layer.seeds[0].state):
        assert in_child(work).startswith("UsageError: session.usage: this process was forked"), work
    assert in_child(lambda: layer.host(x).shape) == f"torch.Size({list(shape)})"
    assert torch.equal(layer(x), truth)
