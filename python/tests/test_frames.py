"""Frames, and a daemon that does not keep to the protocol."""

import array
import os
import pickle
import socket
import struct

import pytest

from kasmina import _frames, errors


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_request_is_eight_bytes_and_json(pair):
    ours, theirs = pair
    _frames.send(ours, _frames.encode(_frames.REQUEST, {"verb": "status"}))
    assert theirs.recv(100) == b"\x11\0\0\0\x01\0\0\0" + b'{"verb":"status"}'


def test_descriptors_come_beside_a_reply(pair):
    ours, theirs = pair
    reading, writing = os.pipe()
    payload = b'{"ok":{}}'
    frame = struct.pack("<IBBH", len(payload), 2, 1, 0) + payload
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reading]))]
    theirs.sendmsg([frame[:3]], control)
    theirs.sendall(frame[3:])
    reply, descriptors = _frames.receive(ours)
    assert reply == {"ok": {}} and len(descriptors) == 1
    os.write(writing, b"x")
    assert os.read(descriptors[0], 1) == b"x"
    for descriptor in (*descriptors, reading, writing):
        os.close(descriptor)


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("<IBBH", 0xFFFFFFFF, 2, 0, 0),
        struct.pack("<IBBH", 2, 1, 0, 0) + b"{}",
        struct.pack("<IBBH", 2, 2, 0, 7) + b"{}",
        struct.pack("<IBBH", 2, 2, 2, 0) + b"{}",
    ],
)
def test_what_is_not_understood_is_an_error(pair, frame):
    ours, theirs = pair
    theirs.sendall(frame)
    with pytest.raises(errors.SessionError) as caught:
        _frames.receive(ours)
    assert caught.value.code == "session.protocol"


def test_the_end_within_a_frame_is_a_lost_connection(pair):
    ours, theirs = pair
    theirs.sendall(struct.pack("<IBBH", 100, 2, 0, 0) + b"{")
    theirs.close()
    with pytest.raises(errors.ConnectionLost) as caught:
        _frames.receive(ours)
    assert caught.value.code == "session.lost"
    assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize(
    "code, kind",
    [
        ("kernel.not_found", errors.KernelError),
        ("origin.breaker_open", errors.OriginError),
        ("session.quota", errors.SessionError),
        ("session.lost", errors.ConnectionLost),
        ("ticket.spent", errors.TicketError),
        ("config.invalid", errors.KasminaError),
    ],
)
def test_each_family_of_codes_has_a_class(code, kind):
    error = errors.from_reply({"code": code, "message": "m", "layer": 1, "seed": 2, "kernel": "k"})
    assert type(error) is kind
    assert (error.code, error.layer, error.seed, error.kernel) == (code, 1, 2, "k")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.code, copied.kernel) == (kind, code, "k")
