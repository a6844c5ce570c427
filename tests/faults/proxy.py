"""A TCP proxy that delays, cuts and falls silent: the bad network between a bus and its Redis."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Self

#: Close with a reset, as a router that lost its table does; no goodbye reaches either side.
_RESET = struct.pack("ii", 1, 0)
_LOOK_S = 0.05


class Proxy:
    """Listens on a loopback port, forwards to another, and does so as badly as it is told.

    `delay_s`: each piece of data, either way, comes so much later. `cut_share`: of so many replies
    only the first half arrives, then the connection is reset. `silent`: data is swallowed, and
    nobody is told.
    """

    def __init__(self, target_port: int, chance: random.Random | None = None) -> None:
        self.delay_s = 0.0
        self.cut_share = 0.0
        self.silent = False
        self.cuts = 0
        self._chance = chance or random.Random(1)
        self._target_port = target_port
        self._closed = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()
        self.cut()

    def behave(self) -> None:
        """From now on be a good proxy."""
        self.delay_s = self.cut_share = 0.0
        self.silent = False

    def cut(self) -> int:
        """Reset every connection; how many there were."""
        cut = [one for one in list(self._open) if self._reset(one)]
        return len(cut)

    def _accept(self) -> None:
        while not self._closed:
            try:
                ready, _, _ = select.select([self._listener], [], [], _LOOK_S)
                if ready:
                    client, _ = self._listener.accept()
                    threading.Thread(target=self._serve, args=[client], daemon=True).start()
            except (OSError, ValueError):
                return

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
        except OSError:
            self._reset(client)
            return
        ends = (client, server)
        self._open.update(ends)
        try:
            for end in ends:
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._forward(client, server)
        except (OSError, ValueError):
            pass
        finally:
            for end in ends:
                self._reset(end)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while not self._closed:
            ready, _, _ = select.select([client, server], [], [], 1.0)
            for source in ready:
                data = source.recv(1 << 16)
                if not data:
                    return
                if self.silent:
                    continue
                if self.delay_s:
                    time.sleep(self.delay_s)  # the slow network is the fault
                if source is server and self._chance.random() < self.cut_share:
                    self.cuts += 1
                    client.sendall(data[: len(data) // 2])
                    return
                (client if source is server else server).sendall(data)

    def _reset(self, end: socket.socket) -> bool:
        known = end in self._open
        self._open.discard(end)
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
        end.close()
        return known
