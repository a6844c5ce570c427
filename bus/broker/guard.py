"""Kombu's Redis transport, with a guard at the door: what no worker can use is laid aside.

Stock kombu decodes whatever BRPOP gives it inside the worker's event loop, where an exception ends
the worker. Here an entry is looked at first (`bus.broker.entries`); a bad one goes to the list
`bus:dead` with the reason, and the worker goes on. Messages that are delivered again, and those of
the broadcasts by which `celery inspect` talks to workers, are looked at in the same way.

Only what reads needs it: producers send with the stock transport.
"""

from __future__ import annotations

import json
import logging
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import redis
from kombu.transport import redis as kombu_redis

from bus.broker.entries import BadMessageError, Tasks, check, check_broadcast, check_unacked
from bus.broker.keys import BAD_MAX, Keys
from bus.model import iso, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("bus.guard")

#: What the guard overrides is not in its published types.
stock: Any = kombu_redis

_SHOWN_BYTES = 2048


class QoS(stock.QoS):  # type: ignore[misc]
    """Kombu's bookkeeping of unacknowledged messages; the bad ones are not delivered again.

    And it is kept when Redis does not hear an acknowledgement. Kombu would count that message as at
    work for ever: a worker that takes one at a time, as the writer does, would never take another,
    and look alive. The message itself comes again after the visibility timeout, harmlessly.
    """

    def ack(self, delivery_tag: str) -> None:
        """The message is dealt with."""
        try:
            super().ack(delivery_tag)
        finally:
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, **options: Any) -> None:
        """The message is dealt with, or, with ``requeue=True``, goes back."""
        try:
            super().reject(delivery_tag, **options)
        finally:
            self._quick_ack(delivery_tag)

    def restore_by_tag(
        self, tag: bytes | str, client: redis.Redis | None = None, **options: Any
    ) -> None:
        """Put a message back into its queue, or, where it does not belong in one, aside."""
        with self.channel.conn_or_acquire(client) as used:
            kept = used.hget(self.unacked_key, tag)
            try:
                if kept is not None:
                    check_unacked(_bytes(kept), self.channel.guarded)
            except BadMessageError as error:
                self.channel.lay_aside(_bytes(kept), self.unacked_key, str(error))
                self._remove_from_indices(tag).execute()
                return
            super().restore_by_tag(tag, used, **options)


class Channel(stock.Channel):  # type: ignore[misc]
    """A channel that looks at every entry of the guarded queues before kombu decodes it.

    Transport option `guarded`: queue -> the tasks that may come through it.
    """

    QoS = QoS
    from_transport_options = (*stock.Channel.from_transport_options, "guarded")
    guarded: Mapping[str, Tasks] = {}

    @cached_property
    def client(self) -> redis.Redis:
        """The client that BRPOPs: kombu reads its replies through `parse_response`."""
        client: redis.Redis = self._create_client(asynchronous=True)
        look = partial(self._look_at_reply, client.parse_response)
        client.parse_response = look  # type: ignore[method-assign]
        return client

    def _connparams(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's own signature
        """How to connect. Raises `redis.ConnectionError` when the connection was closed meanwhile.

        Celery knows what to do with that. Stock kombu asks None for its host name, of which the
        worker dies: when Redis goes away again while what it lost before is being cleared up.
        """
        if getattr(self.connection, "client", None) is None:  # closing clears either
            raise redis.ConnectionError("this connection was closed")
        return super()._connparams(asynchronous)

    def _look_at_reply(
        self, read: Callable[..., Any], connection: Any, command: str, **options: Any
    ) -> Any:
        reply = read(connection, command, **options)
        if command != "BRPOP" or not reply:
            return reply
        key, entry = reply
        queue = _text(key).rsplit(self.sep, 1)[0]  # kombu keeps a list for each priority
        if queue not in self.guarded:
            return reply
        try:
            check(_bytes(entry), queue, self.guarded[queue])
        except BadMessageError as error:
            self.lay_aside(_bytes(entry), queue, str(error))
            return None  # as if nothing had come
        return reply

    def _deliver_fanout_message(self, message: object, exchange: str) -> bool:
        try:
            check_broadcast(message)
        except BadMessageError as error:
            self.lay_aside(json.dumps(message).encode(), exchange, str(error))
            return False
        return bool(super()._deliver_fanout_message(message, exchange))

    def lay_aside(self, entry: bytes, source: str, reason: str) -> None:
        """Keep an entry for a look. A Redis that takes no more leaves it to the log."""
        shown = entry[:_SHOWN_BYTES].decode(errors="backslashreplace")
        log.error("an entry of %s is refused: %s", source, reason, extra={"entry": shown[:512]})
        kept = {"reason": reason, "queue": source, "entry": shown, "size_bytes": len(entry)}
        dead = Keys(self.global_keyprefix).dead
        try:
            pipe = redis.Redis(connection_pool=self.pool).pipeline(transaction=False)
            pipe.lpush(dead, json.dumps(kept | {"at_utc": iso(utc_now())}))
            pipe.ltrim(dead, 0, BAD_MAX - 1)
            pipe.execute()
        except (redis.RedisError, OSError) as error:
            log.warning("it could not be kept: %s", error)


class Transport(stock.Transport):  # type: ignore[misc]
    """``broker_transport = "bus.broker.guard:Transport"``."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        """Hand a message to Celery; should that fail on it all the same, the worker goes on."""
        try:
            super()._deliver(message, queue)
        except (*self.connection_errors, *self.channel_errors, MemoryError):
            raise
        except Exception as error:
            log.exception("celery failed on a message")
            self._drop(message, queue, f"{type(error).__name__}: {error}")

    def _drop(self, message: Any, queue: str, reason: str) -> None:
        for channel in self.channels:
            if queue in channel.guarded:
                tag = message["properties"]["delivery_tag"]
                channel.lay_aside(json.dumps(message).encode(), queue, reason)
                channel.qos.reject(tag, requeue=False)
                return


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
