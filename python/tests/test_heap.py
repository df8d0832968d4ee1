"""The arena's heap."""

import gc
import random

import pytest

from kasmina._heap import Heap
from kasmina.errors import ArenaFull


def test_blocks_never_overlap_and_all_come_back():
    heap = Heap(4096, 1 << 20)
    choose = random.Random(1)
    held = []
    for _ in range(3000):
        if held and choose.random() < 0.5:
            held.pop(choose.randrange(len(held)))
        else:
            try:
                held.append(heap.allocate(choose.choice([0, 1, 64, 1000, 5000, 40000])))
            except ArenaFull:
                held.clear()
        spans = sorted((block.offset, block.size) for block in held)
        assert all(offset % 64 == 0 and offset >= 4096 for offset, _ in spans)
        assert all(a + size <= b for (a, size), (b, _) in zip(spans, spans[1:]))
    held.clear()
    gc.collect()
    assert heap.free_bytes == heap.size
    whole = heap.allocate(heap.size)
    assert whole.offset == 4096


def test_a_full_heap_says_so_and_recovers():
    heap = Heap(0, 1024)
    block = heap.allocate(1000)
    with pytest.raises(ArenaFull) as caught:
        heap.allocate(1)
    assert caught.value.code == "session.quota"
    assert isinstance(caught.value, MemoryError)
    del block
    assert heap.allocate(1024).size == 1024


def test_a_block_of_the_same_size_is_used_again():
    heap = Heap(0, 4096)
    first = heap.allocate(100)
    offset = first.offset
    del first
    assert heap.allocate(100).offset == offset
