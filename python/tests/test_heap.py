"""The arena's heap."""

import gc
import random
import threading

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


def test_threads_never_share_a_block():
    heap = Heap(0, 1 << 16)
    owners = [None] * (heap.size // 64)
    wrong = []

    def work(me):
        choose = random.Random(me)
        held = []
        for _ in range(2000):
            try:
                held.append(heap.allocate(choose.choice([64, 64, 128, 4096, 16384])))
            except ArenaFull:
                pass
            else:
                for place in range(held[-1].offset // 64, (held[-1].offset + held[-1].size) // 64):
                    if owners[place] is not None:
                        wrong.append((me, owners[place], place))
                    owners[place] = me
            while len(held) > choose.randrange(5):
                block = held.pop(choose.randrange(len(held)))
                for place in range(block.offset // 64, (block.offset + block.size) // 64):
                    owners[place] = None
                del block
        for block in held:
            for place in range(block.offset // 64, (block.offset + block.size) // 64):
                owners[place] = None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong
    assert heap.free_bytes == heap.size
    assert heap.allocate(heap.size).offset == 0


def test_it_is_crowded_where_less_than_half_is_free():
    heap = Heap(0, 1 << 16)
    held = [heap.allocate(64) for _ in range(1 << 9)]
    assert not heap.crowded
    held.append(heap.allocate(64))
    assert heap.crowded
    held.clear()
    assert not heap.crowded
