"""Tensors of ``client.empty``: a layer reads them where they lie."""

import pytest
import torch

import kasmina
from kasmina.torch._arena import in_arena

from .composition import near, pair


def lies_there(client, tensor):
    return in_arena(client.connection, tensor, tensor.nbytes)[1] is None


def filled(client, shape, **options):
    x = client.empty(*shape, **options)
    with torch.no_grad():
        return x.copy_(torch.randn(shape))


def test_a_layer_reads_it_where_it_lies(client):
    layer, plain, shape = pair(client, ["mlp"], "residual", [1.0])
    x = filled(client, shape, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    assert lies_there(client, x) and not lies_there(client, twin)
    y, grad = layer(x), filled(client, shape)
    near(y, plain(twin), "y")
    y.backward(grad)
    plain(twin).backward(grad)
    near(x.grad, twin.grad, "the gradient of x")


def test_what_a_layer_gives_lies_there_too(client):
    layer, _, shape = pair(client, ["mlp"], "convex", [1.0])
    x = filled(client, shape, requires_grad=True)
    y = layer(x)
    assert lies_there(client, y.detach())
    y.backward(torch.ones_like(y))
    assert lies_there(client, x.grad)


def test_a_change_before_the_backward_is_found(client):
    layer, _, shape = pair(client, ["mlp"], "residual", [1.0])
    x = filled(client, shape, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))
def test_it_is_as_torch_makes_it(client, dtype):
    for size in ((3, 5), ([3, 5],), (torch.Size((3, 5)),), (7,), (0, 4), ((),)):
        ours, theirs = client.empty(*size, dtype=dtype), torch.empty(*size, dtype=dtype)
        assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
        assert ours.is_contiguous() and ours.is_leaf and not ours.requires_grad and not ours.is_inference()


def test_it_says_what_it_cannot_make(client):
    with pytest.raises(kasmina.UsageError, match="torch.int64 was asked for"):
        client.empty(3, dtype=torch.int64)
    with pytest.raises(kasmina.UsageError, match=r"0 or more, and \[3, -1\]"):
        client.empty(3, -1)
    with pytest.raises(kasmina.ArenaFull):
        client.empty(1 << 40)


def test_its_memory_comes_back(client):
    before = client.connection._heap.free_bytes
    x = client.empty(1 << 20)
    part = x[5:]
    assert client.connection._heap.free_bytes < before
    del x
    assert client.connection._heap.free_bytes < before
    del part
    assert client.connection._heap.free_bytes == before
