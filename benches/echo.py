"""A bare 64-byte echo between two Python processes over a Unix socket: what a hand-off is measured against."""

import os
import socket
import time

BYTES = 64


def echo_round_trip(count=20_000):
    """Times of single round trips in microseconds, the first tenth left out."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    child = os.fork()
    if child == 0:
        ours.close()
        while data := theirs.recv(BYTES):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    message, times = b"x" * BYTES, []
    for _ in range(count):
        began = time.perf_counter()
        ours.sendall(message)
        ours.recv(BYTES)
        times.append((time.perf_counter() - began) * 1e6)
    ours.close()
    os.waitpid(child, 0)
    return times[count // 10 :]


if __name__ == "__main__":
    times = sorted(echo_round_trip())
    print(f"p50 {times[len(times) // 2]:.1f} µs, p99 {times[len(times) * 99 // 100]:.1f} µs")
