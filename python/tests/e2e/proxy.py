"""A proxy that breaks what passes through it, for HTTP and for anything else over TCP.

It listens on a loopback port and hands bytes on to ``target``. What it does to them is ``fault``, which may be
changed at any time and holds for connections that are open too:

========== =========================================================================================
latency    each piece of an answer comes ``delay`` seconds late
reset      a connection is reset where the answer would begin
truncate   an answer ends after ``after`` bytes, and the connection with it
error      answers 500 to every request, without asking the target (HTTP only)
corrupt    one bit in every 64 bytes of an answer, from byte ``after`` on, is turned over
drip       an answer comes a byte at a time, ``delay`` seconds apart
hang       nothing comes back, and the connection stays open
refuse     a connection is closed as soon as it is made
========== =========================================================================================

``seen`` counts connections, ``hanging`` is set once an answer is being held back.
"""

import contextlib
import socket
import struct
import threading

FAULTS = ("latency", "reset", "truncate", "error", "corrupt", "drip", "hang", "refuse")


class Proxy:
    def __init__(self, target):
        self.target = target
        self.seen = 0
        self.hanging = threading.Event()
        self._changed = threading.Condition()
        self._fault, self._delay, self._after = None, 0.0, 0
        self._open = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, fault=None, delay=0.05, after=0):
        """From now on does this to answers; None is nothing."""
        assert fault is None or fault in FAULTS, fault
        with self._changed:
            self._fault, self._delay, self._after = fault, delay, after
            self.hanging.clear()
            self._changed.notify_all()
        if fault in ("refuse", "error"):
            # These meet new connections: one that a client keeps would go on as if nothing were.
            for connection in list(self._open):
                self._end(connection)

    def close(self):
        # Wakes `accept`, which a mere close does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.set(None)
        for connection in list(self._open):
            self._end(connection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.seen += 1
            if self._fault == "refuse":
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        server = None
        try:
            if self._fault == "error":
                return self._answer_500(client)
            server = socket.create_connection(self.target)
            self._open |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            self._back(server, client)
        except OSError:
            pass
        finally:
            self._end(client)
            if server is not None:
                self._end(server)

    def _forward(self, client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        self._end(server)

    def _back(self, server, client):
        passed = 0
        while data := server.recv(65536):
            self._hold_back()
            fault, delay, after = self._fault, self._delay, self._after
            if fault == "reset":
                # A linger of zero seconds makes the close a reset.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                return
            if fault == "truncate":
                client.sendall(data[: max(0, after - passed)])
                if passed + len(data) > after:
                    return
            elif fault == "corrupt":
                start = max(0, after - passed)
                data = bytes(b ^ 1 if i >= start and i % 64 == 0 else b for i, b in enumerate(data))
                client.sendall(data)
            elif fault == "drip":
                for at in range(len(data)):
                    if self._fault != "drip":
                        client.sendall(data[at:])
                        break
                    client.sendall(data[at : at + 1])
                    self._wait(delay)
            else:
                if fault == "latency":
                    self._wait(delay)
                client.sendall(data)
            passed += len(data)

    def _hold_back(self):
        with self._changed:
            while self._fault == "hang":
                self.hanging.set()
                self._changed.wait()

    def _wait(self, seconds):
        """Waits, but not beyond a change of the fault."""
        with self._changed:
            fault = self._fault
            self._changed.wait_for(lambda: self._fault != fault, timeout=seconds)

    def _answer_500(self, client):
        self._open.add(client)
        request = b""
        while b"\r\n\r\n" not in request:
            data = client.recv(65536)
            if not data:
                return
            request += data
        client.sendall(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    def _end(self, connection):
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
