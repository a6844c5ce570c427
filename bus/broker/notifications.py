"""The notify list, read by the pump."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import redis

from bus.broker.endpoint import WORKER_TIMEOUT_S, Address, open_redis
from bus.broker.keys import BAD_MAX, Keys
from bus.errors import Unavailable
from bus.model import iso, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable

_TAKE_MAX = 500
_TAKE_BLOCK_S = 0.5
_SHOWN_BYTES = 512


class Notifications:
    """One notify list, as the pump reads it. Every method raises `Unavailable` (E501).

    An entry moves to the processing list before anyone looks at it, and leaves that when it is
    dealt with: a pump that dies in between finds it again.
    """

    def __init__(self, where: Address, source: str) -> None:
        self._keys = Keys(where.prefix)
        self._source = source
        self._client = open_redis(where.url, timeout_s=WORKER_TIMEOUT_S, block_s=_TAKE_BLOCK_S)

    def recover(self) -> None:
        """Put back what a predecessor was working on."""
        command = ("LMOVE", self._keys.processing, self._source, "LEFT", "RIGHT")
        while self._run([command])[0] is not None:
            pass

    def take(self) -> tuple[list[bytes], int]:
        """The oldest entries, at most 500, and how many messages wait for ingest workers.

        Waits half a second for an entry, then returns none.
        """
        lists = (self._source, self._keys.processing, "RIGHT", "LEFT")
        look = [("LLEN", self._source), ("LLEN", self._keys.ingest)]
        # One round trip: what follows a command that blocks is done when it no longer does.
        first, waiting, queued = self._run([("BLMOVE", *lists, _TAKE_BLOCK_S), *look])
        if first is None:
            return [], 0
        waiting = min(waiting, _TAKE_MAX - 1)
        more = self._run([("LMOVE", *lists)] * waiting) if waiting else []
        return [first, *(entry for entry in more if entry is not None)], queued

    def settle(self, entries: Iterable[bytes], bad: Iterable[tuple[bytes, str]] = ()) -> None:
        """The entries are dealt with; `bad` ones of them (with the reason) are kept for a look."""
        keys = self._keys
        commands: list[tuple[Any, ...]] = [
            ("LREM", keys.processing, -1, entry) for entry in entries
        ]
        commands.append(("HINCRBY", keys.counters, "notify_moved", len(commands)))
        for entry, reason in bad:
            shown = entry[:_SHOWN_BYTES].decode(errors="backslashreplace")
            kept = {"reason": reason, "entry": shown, "size_bytes": len(entry)}
            commands.append(("LPUSH", keys.bad, json.dumps(kept | {"at_utc": iso(utc_now())})))
            commands.append(("LTRIM", keys.bad, 0, BAD_MAX - 1))
            commands.append(("HINCRBY", keys.counters, "notify_bad", 1))
        self._run(commands)

    def close(self) -> None:
        """Drop the connection."""
        self._client.close()

    def _run(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        try:
            pipe = self._client.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipe.execute()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(str(error), where=self._source) from None
