"""Frames of the control connection: eight bytes of header, then JSON, with file descriptors beside them."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from typing import Any, List, Tuple

from ._layout import LAYOUT
from .errors import ConnectionLost, SessionError

HEADER = struct.Struct("<IBBH")
MAX_FRAME_BYTES: int = LAYOUT["max_frame_bytes"]
MAX_DESCRIPTORS = 4
REQUEST: int = LAYOUT["frame_kinds"]["request"]
REPLY: int = LAYOUT["frame_kinds"]["reply"]
EVENT: int = LAYOUT["frame_kinds"]["event"]

_LOST = "the daemon has closed the connection"


def encode(kind: int, message: Any) -> bytes:
    """A whole frame without descriptors."""
    payload = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(payload) > MAX_FRAME_BYTES:
        raise SessionError(
            f"a request of {len(payload)} bytes is too long: at most {MAX_FRAME_BYTES} are allowed",
            code="session.protocol",
        )
    return HEADER.pack(len(payload), kind, 0, 0) + payload


def send(sock: socket.socket, frame: bytes) -> None:
    try:
        sock.sendall(frame, socket.MSG_NOSIGNAL)
    except OSError as error:
        raise ConnectionLost(f"{_LOST}: {error}") from error


def receive(sock: socket.socket, kind: int = REPLY) -> Tuple[Any, List[int]]:
    """The next frame's JSON and the file descriptors beside it, which are then the caller's to close."""
    descriptors: List[int] = []
    try:
        length, came, announced, zero = HEADER.unpack(_fill(sock, HEADER.size, descriptors))
        if length > MAX_FRAME_BYTES or came != kind or zero != 0:
            raise SessionError(
                f"the daemon sent a frame of kind {came} and {length} bytes, which is not understood",
                code="session.protocol",
            )
        payload = _fill(sock, length, descriptors)
        if len(descriptors) != announced:
            raise SessionError(
                f"the daemon announced {announced} file descriptors and sent {len(descriptors)}",
                code="session.protocol",
            )
        return json.loads(payload), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def _fill(sock: socket.socket, count: int, descriptors: List[int]) -> bytes:
    pieces: List[bytes] = []
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    while count > 0:
        try:
            piece, control, flags, _ = sock.recvmsg(min(count, 1 << 16), room, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise ConnectionLost(f"{_LOST}: {error}") from error
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                descriptors.extend(numbers)
        if not piece:
            raise ConnectionLost(_LOST)
        if flags & socket.MSG_CTRUNC or len(descriptors) > MAX_DESCRIPTORS:
            raise SessionError("the daemon sent too many file descriptors", code="session.protocol")
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def close_all(descriptors: List[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()
