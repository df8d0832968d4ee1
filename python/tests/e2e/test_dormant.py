"""Seeds that nothing is grafted into: they cost next to nothing."""

import math
from pathlib import Path

SEEDS, IN_LAYER, EACH_BYTES = 10_000, 64, 1024


def resident_bytes(daemon):
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(dict(line.split(":", 1) for line in text.splitlines())["VmRSS"].split()[0]) * 1024


def threads(daemon):
    """The names of those that run passes."""
    names = [path.read_text() for path in Path(f"/proc/{daemon.process.pid}/task").glob("*/comm")]
    return sorted(name for name in names if name.startswith(("lane", "seed")))


def test_ten_thousand_dormant_seeds_take_a_kilobyte_each_and_neither_thread_nor_descriptor(start):
    # SQLite's threads come when they are wanted.
    daemon = start(settings="[cache.sqlite]\nenabled = false\n")
    with daemon.connect() as client:
        # What the first layer has the daemon make once is no seed's.
        layers = [client.open_layer("first", IN_LAYER, input_shape=(8,))]
        resident, running, descriptors = resident_bytes(daemon), threads(daemon), daemon.descriptors()
        count = math.ceil(SEEDS / IN_LAYER)
        layers += [client.open_layer(f"layer-{n}", IN_LAYER, input_shape=(8,)) for n in range(count)]
        grown = resident_bytes(daemon) - resident
        assert threads(daemon) == running and daemon.descriptors() <= descriptors
        assert grown <= SEEDS * EACH_BYTES
        (session,) = daemon.status()["sessions"]
        assert session["layers"] == len(layers) and session["live_seeds"] == 0
