"""The whole path: a real daemon, real kernels, PyTorch as the trainer."""
