"""The daemon's side of the wire in a thread, for tests that need no kasminad: kernels are PyTorch modules.

Written against docs/wire.md and apart from the client's own modules, so that a mistake in one shows.
"""

from __future__ import annotations

import array
import copy
import fcntl
import hashlib
import io
import json
import mmap
import os
import socket
import struct
import threading

import torch

DTYPES = {torch.float32: "float32", torch.int64: "int64"}
FAIL = {"kernel.runtime": 3, "kernel.non_finite": 5}
SUBMISSION = struct.Struct("<IIQIIQQ12QII8I8I4Q16x")
COMPLETION = struct.Struct("<QIfQQQ64sQQQIf64s56x")
HEAP = 36864


def sealed(size):
    descriptor = os.memfd_create("peer", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, 1033, 1 | 2 | 4)  # F_ADD_SEALS: SEAL, SHRINK, GROW
    return descriptor, mmap.mmap(descriptor, size)


def tensor(memory, dtype, shape, offset):
    count = int(torch.Size(shape).numel())
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(tuple(shape))


class Refused(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class SeedSlot:
    kernel = None
    module = None
    alpha = 0.0
    role = "blend"
    generation = 0
    failures = 0
    error = None
    executions = 0


class Peer:
    """Serves any number of connections, one after the other, until closed."""

    def __init__(self, path, kernels, arena_bytes=4 << 20, spin_us=0):
        self.path = path
        self.kernels = kernels
        self.arena_bytes = arena_bytes
        self.spin_us = spin_us
        self.tickets = {}
        self.layers = {}
        self.closed_layers = []
        self.forwards = 0
        self.seeds_seen = []
        self.offers = []
        self.given = []
        self.refuse_next = None
        self.hold = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._session, args=(connection,), daemon=True).start()

    # control

    def _session(self, connection):
        try:
            self._serve(connection)
        except ConnectionError:  # it left with a reply of ours unread
            pass

    def _serve(self, connection):
        with connection:
            while True:
                header = connection.recv(8, socket.MSG_WAITALL)
                if len(header) < 8:
                    return
                length, kind, descriptors, zero = struct.unpack("<IBBH", header)
                assert (kind, descriptors, zero) == (1, 0, 0)
                request = json.loads(connection.recv(length, socket.MSG_WAITALL))
                verb = request.pop("verb")
                descriptors = []
                try:
                    reply, descriptors = getattr(self, "_" + verb)(**request)
                    reply = {"ok": reply}
                except Refused as refused:
                    reply = {"error": {"code": refused.code, "message": str(refused), **{
                        key: request[key] for key in ("layer", "seed", "kernel") if key in request}}}
                payload = json.dumps(reply).encode()
                frame = struct.pack("<IBBH", len(payload), 2, len(descriptors), 0) + payload
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                connection.sendmsg([frame], control if descriptors else [])
                for descriptor in descriptors:
                    os.close(descriptor)

    def _hello(self, protocol, client, pid, arena_bytes):
        assert protocol == 2 and client.startswith("kasmina-python/") and pid == os.getpid()
        size = min(arena_bytes, self.arena_bytes)
        descriptor, self.memory = sealed(size)
        arena = {
            "arena_bytes": size, "submissions_offset": 4096, "completions_offset": 4096 + 16384,
            "ring_entries": 64, "descriptor_bytes": 256, "heap_offset": HEAP, "heap_bytes": size - HEAP,
        }
        magic = int.from_bytes(b"KASMINA\x01", "little")
        struct.pack_into("<8Q", self.memory, 0, magic, *arena.values())
        ours, theirs = socket.socketpair()
        self.doorbell = ours
        self.lane = threading.Thread(target=self._lane, daemon=True)
        self.lane.start()
        limits = {"max_arena_bytes": size, "max_layers": 8, "max_seeds_per_layer": 64,
                  "max_tickets": 64, "max_saved_bytes": 1 << 30}
        reply = {"session": 1, "server": "peer/0", "protocol": 2, "device": "cpu", "arena": arena,
                 "limits": limits, "spin_us": self.spin_us}
        return reply, [descriptor, theirs.detach()]

    def _open_layer(self, name, seeds, blend, input_shape, dtype, host=False, recompute=False):
        number = len(self.layers) + 1
        self.layers[number] = (blend, [SeedSlot() for _ in range(seeds + host)], seeds)
        return {"layer": number}, []

    def _close_layer(self, layer):
        self.closed_layers.append(layer)
        return {}, []

    def _graft(self, layer, seed, kernel, alpha, input_shape, dtype, role="blend"):
        if kernel not in self.kernels:
            code = "kernel.not_offered" if kernel.startswith("offered-") else "kernel.not_found"
            raise Refused(code, f"no kernel {kernel}")
        slot = self.layers[layer][1][seed]
        module = copy.deepcopy(self.kernels[kernel])
        tables, size = ([], []), 0
        for table, named in zip(tables, (module.named_parameters(), module.named_buffers())):
            for name, value in named:
                table.append({"name": name, "dtype": DTYPES[value.dtype], "shape": list(value.shape),
                              "offset": size, "requires_grad": value.requires_grad})
                size += (value.numel() * value.element_size() + 63) // 64 * 64
            if table is tables[0]:
                gradient_bytes = size
        size = max(size, 64)
        descriptor, memory = sealed(size)
        for table, named in zip(tables, (module.named_parameters(), module.named_buffers())):
            for entry, (_, value) in zip(table, list(named)):
                shared = tensor(memory, value.dtype, value.shape, entry["offset"])
                shared.copy_(value.detach())
                value.data = shared
        slot.kernel, slot.module, slot.alpha, slot.failures, slot.role = kernel, module, alpha, 0, role
        slot.generation += 1
        return {"layer": layer, "seed": seed, "kernel": kernel, "generation": slot.generation,
                "state": "holding", "alpha": alpha, "memory_bytes": size, "buffers_offset": gradient_bytes,
                "gradient_bytes": gradient_bytes, "parameters": tables[0], "buffers": tables[1]}, [descriptor]

    def _set_alpha(self, layer, seed, alpha):
        self.layers[layer][1][seed].alpha = alpha
        return self._seed_state(layer, seed)

    def _prune(self, layer, seed):
        slot = self.layers[layer][1][seed]
        if slot.kernel is None:
            raise Refused("seed.transition", "a dormant seed cannot be pruned")
        slot.kernel, slot.module, slot.alpha = None, None, 0.0
        return self._seed_state(layer, seed)

    def _seed_state(self, layer, seed):
        slot = self.layers[layer][1][seed]
        state = "dormant" if slot.kernel is None else "holding"
        if slot.failures >= 3:
            state = "error_recovery"
        return {"state": state, "alpha": slot.alpha, "kernel": slot.kernel, "generation": slot.generation}, []

    def _seed_stats(self, layer, seed):
        return {"executions": self.layers[layer][1][seed].executions}, []

    def _last_error(self, layer, seed):
        error = self.layers[layer][1][seed].error
        return {"error": error and {"code": "kernel.runtime", "message": error}}, []

    def _offer(self, offset, bytes):
        assert offset >= HEAP and offset % 64 == 0
        artifact = self.memory[offset : offset + bytes]
        if not artifact.startswith(b"PK"):
            raise Refused("kernel.deserialize", "no archive")
        digest = hashlib.sha256(artifact).hexdigest()
        self.kernels["offered-" + digest] = torch.export.load(io.BytesIO(artifact)).module()
        self.offers.append(digest)
        return {"kernel": "offered-" + digest, "digest": digest}, []

    def _prefetch(self, kernels):
        return {"started": len(kernels)}, []

    # data

    def _lane(self):
        words = memoryview(self.memory).cast("Q")
        head = 0
        words[40] = 1
        while self._rung():
            while words[8] != head:
                if self.hold is not None:
                    self.hold.wait(20)
                if self.kernels.get("deaf"):  # dies before it has looked
                    self.doorbell.close()
                    return
                fields = SUBMISSION.unpack_from(self.memory, 4096 + head % 64 * 256)
                head += 1
                words[16] = head
                completion = self._answer(fields)
                if completion is None:  # dies in the middle of a pass
                    self.doorbell.close()
                    return
                COMPLETION.pack_into(self.memory, 4096 + 16384 + (head - 1) % 64 * 256, *completion)
                words[24] = head
                if words[48]:
                    try:
                        self.doorbell.send(b"\1", socket.MSG_NOSIGNAL)
                    except ConnectionError:
                        return

    def _rung(self):
        try:
            return self.doorbell.recv(64)
        except ConnectionError:  # it closed with a ring of ours unheard
            return b""

    def _answer(self, fields):
        verb, flags, sequence, layer, dtype, ticket, seed, *rest = fields
        blocks, ranks, dims = rest[:12] + rest[30:], rest[12:14], rest[14:30]
        places = list(zip(blocks[::2], blocks[1::2]))
        for offset, size in places:
            assert (offset, size) == (0, 0) or (offset >= HEAP and offset % 64 == 0)
        if self.refuse_next:
            status, message = self.refuse_next
            self.refuse_next = None
            return self._completion(sequence, status=status, message=message)
        if self.kernels.get("die"):
            return None
        if verb == 1:
            shapes = dims[: ranks[0]], dims[8 : 8 + ranks[1]]
            return self._forward(flags, sequence, layer, seed, places, shapes)
        if ticket not in self.tickets:
            return self._completion(sequence, status=4, message="no such ticket")
        held = self.tickets.pop(ticket)
        if verb == 2:
            return self._backward(flags, sequence, held, places)
        return self._completion(sequence)

    @staticmethod
    def _completion(sequence, status=0, message="", weight=0.0, ticket=0, live=0, failed=None, total=0.0):
        failed = failed or {}
        kinds = bytes(failed.get(seed, 0) for seed in range(64))
        mask = sum(1 << seed for seed in failed)
        text = message.encode()[:64]
        return (sequence, status, weight, ticket, live, mask, kinds, 0, 1, 1, len(text), total, text)

    def _forward(self, flags, sequence, layer, seed, places, shapes):
        self.forwards += 1
        self.seeds_seen.append(seed)
        blend, slots, seeds = self.layers[layer]
        x = tensor(self.memory, torch.float32, shapes[0], places[0][0]).clone().requires_grad_()
        out = tensor(self.memory, torch.float32, shapes[1], places[1][0])
        given = [float("nan")] * seeds
        if places[6][1]:
            assert places[6][1] == 4 * seeds
            given = tensor(self.memory, torch.float32, [seeds], places[6][0]).tolist()
        self.given.append(given)
        if len(slots) > seeds and slots[seeds].module is None:
            return self._completion(sequence, status=13, message="no host")
        ran, failed = [], {}
        with torch.enable_grad():
            for index, slot in enumerate(slots):
                is_given = index < seeds and given[index] == given[index]
                alpha = given[index] if is_given else slot.alpha
                if slot.module is None or (slot.role == "train" and not flags & 1):
                    continue
                if index < seeds and slot.role == "blend" and alpha == 0 and not (is_given and flags & 16):
                    continue
                slot.module.train(bool(flags & 1))
                slot.executions += 1
                try:
                    straight = index < seeds and slot.role == "train"
                    ran.append((index, slot, slot.module(x.detach() if straight else x), alpha, straight))
                except RuntimeError as error:
                    slot.failures, slot.error = slot.failures + 1, str(error)
                    failed[index] = FAIL["kernel.runtime"]
                    if slot.failures >= 3:
                        slot.module = None
            blended = [(index, y, alpha) for index, _, y, alpha, straight in ran if index < seeds and not straight]
            h = next((y for index, _, y, _, _ in ran if index == seeds), None)
            alphas = torch.tensor([alpha for _, _, alpha in blended], requires_grad=True)
            total = alphas.sum()
            weight = torch.where(total <= 1, total, torch.ones(()))
            if blend == "multiply":
                result = torch.ones(tuple(shapes[1])) if h is None else h
                for i, (_, y, _) in enumerate(blended):
                    result = result * (1 + alphas[i] * torch.tanh(y - x))
            else:
                scale = weight / total if blend == "convex" and total > 0 else 1.0
                result = torch.zeros(tuple(shapes[1]))
                for i, (_, y, _) in enumerate(blended):
                    result = result + alphas[i] * scale * y
                if h is not None:
                    result = result + (1 - weight if blend == "convex" else 1.0) * h
        out.copy_(result.detach())
        number = 0
        if flags & 2:
            number = 100 + self.forwards
            straight = [y for _, _, y, _, straight in ran if straight]
            slots = [(index, slot) for index, slot, *_ in ran]
            self.tickets[number] = (x, result, slots, [index for index, *_ in blended], alphas, straight, seeds)
        live = sum(1 << index for index, *_ in ran)
        return self._completion(sequence, 0, "", weight.item(), number, live, failed, total.item())

    def _backward(self, flags, sequence, held, places):
        x, result, slots, blended, alphas, straight, seeds = held
        grad = tensor(self.memory, torch.float32, result.shape, places[2][0]).clone()
        other = tensor(self.memory, torch.float32, result.shape, places[7][0]).clone() if places[7][1] else grad
        parameters = [p for _, slot in slots for p in slot.module.parameters()]
        wanted = [x, alphas, *(p for p in parameters if p.requires_grad)]
        outputs = [y for y in (result, *straight) if y.requires_grad]
        ends = [grad] * result.requires_grad + [other] * (len(outputs) - result.requires_grad)
        found = torch.autograd.grad(outputs, wanted, ends, allow_unused=True) if outputs else [None] * len(wanted)
        grads = {id(key): value for key, value in zip(wanted, found)}
        if flags & 4:
            into = tensor(self.memory, torch.float32, x.shape, places[3][0])
            into.zero_()
            if grads[id(x)] is not None:
                into.copy_(grads[id(x)])
        if flags & 8:
            offset = places[4][0]
            for parameter in parameters:
                value = grads.get(id(parameter))
                into = tensor(self.memory, torch.float32, parameter.shape, offset)
                into.zero_()
                if value is not None:
                    into.copy_(value)
                offset += (parameter.numel() * 4 + 63) // 64 * 64
            assert offset - places[4][0] == places[4][1]
        if flags & 16:
            into = tensor(self.memory, torch.float32, [seeds], places[5][0])
            into.zero_()
            for i, index in enumerate(blended):
                into[index] = grads[id(alphas)][i]
        return self._completion(sequence, live=sum(1 << index for index, _ in slots))
