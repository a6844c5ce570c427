"""A raw command to the bus's Redis, for machines without redis-cli."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis

from bus.broker import address, open_redis
from bus.errors import Code, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bus.settings import Settings

_TIMEOUT_S = 5.0
_LONGEST_BLOCK_S = 3600.0
_BLOCKING = ("B", "XREAD", "WAIT")


def command(settings: Settings, words: Sequence[str]) -> Any:
    """Redis's answer to one command, as JSON has it: texts, numbers, lists, null.

    Raises `Unavailable` (E501) when no Redis answers, `NotFound` (E511) with Redis's own words when
    it refuses the command.
    """
    where = address(settings)
    if where is None:
        raise Unavailable("no bus is running on this lake", where=str(settings.lake))
    block_s = _LONGEST_BLOCK_S if words[0].upper().startswith(_BLOCKING) else 0.0
    with open_redis(where.url, timeout_s=_TIMEOUT_S, block_s=block_s) as client:
        try:
            return _readable(client.execute_command(*words))
        except redis.ResponseError as error:
            hint = "See the documentation of Redis for the command."
            raise NotFound(str(error), code=Code.E511, where=words[0], hint=hint) from None
        except (redis.RedisError, OSError) as error:
            raise Unavailable(str(error), code=Code.E501, where=_place(where.url)) from None


def prefix(settings: Settings) -> str:
    """What stands before every key of this lake."""
    where = address(settings)
    return where.prefix if where else ""


def _place(url: str) -> str:
    return url.rpartition("@")[2]


def _readable(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return answer.decode(errors="backslashreplace")
    if isinstance(answer, list | tuple | set):
        return [_readable(item) for item in answer]
    if isinstance(answer, dict):
        return {str(_readable(k)): _readable(v) for k, v in answer.items()}
    return answer
