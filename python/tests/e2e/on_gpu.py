"""Trainers whose tensors lie on the GPU that the daemon computes on: a real one where PyTorch has it, else the stand-in of
tests/cuda, whose memory is the host's, so that PyTorch for the CPU computes there."""

import ctypes
import math
import os

import torch

import kasmina._cuda
import kasmina.torch._gpu
from kasmina._cuda import Signals

#: What sessions are opened for, as scripts/test and scripts/gpu-check have it; None for the host's memory.
DEVICE = os.environ.get("KASMINA_TRAINER_DEVICE")


def prepare(driver):
    """Has sessions of this process share the GPU's memory. ``driver`` is the stand-in's folder."""
    if torch.cuda.is_available():
        torch.set_default_device("cuda:0")
    else:
        use_stand_in(driver, setattr)


def use_stand_in(driver, patch):
    """Has the client take the stand-in for a GPU; ``patch`` is ``setattr``, or undone after a test."""
    patch(kasmina._cuda, "LIBRARY", f"{driver}/libcuda.so.1")
    patch(kasmina.torch._gpu, "device_of", lambda client: torch.device("cpu"))
    patch(kasmina.torch._gpu, "current_stream", lambda number: 0)
    patch(kasmina.torch._gpu, "over", over)
    patch(Signals, "wait", wait)


_wait = Signals.wait


def wait(signals, sequence, sequel):
    """As ``Signals.wait``; PyTorch for the CPU is on no stream, so this thread waits for the one that it hands its work to."""
    _wait(signals, sequence, sequel)
    signals._gpu.call("cuStreamSynchronize", signals._stream())


def over(device, address, dtype, shape, held):
    """As ``kasmina.torch._gpu.over``, for memory that is the host's."""
    with torch.inference_mode(False):
        span = (ctypes.c_ubyte * (math.prod(shape) * dtype.itemsize)).from_address(address)
        span.held = held
        flat = torch.frombuffer(span, dtype=dtype)
        return torch.empty(0, dtype=dtype).set_(flat.untyped_storage(), 0, shape)
