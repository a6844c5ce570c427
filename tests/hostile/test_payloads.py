"""Anything may be pushed into Celery's queues: it is laid aside with a reason, and work goes on.

Stock Celery loses its worker to about every second of these, some of them for ever (the entry comes
back when the worker is started again). The last section shows that on the stock transport itself.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from uuid import uuid4

import pytest
import redis
from celery.app.task import Context
from kombu import Connection, Consumer, Queue

from bus import app
from bus.broker import BAD_MAX, INGEST, WRITER, entries
from tests.faults.field import PATIENCE_S, celery_message, encoded
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.campaign import Campaign
    from tests.faults.field import Field

pytestmark = pytest.mark.xdist_group("bus")
pytest_plugins = ["tests.faults.fixtures"]


# ── messages, good and bad ────────────────────────────────────────────────────────────────────────

#: A task that each queue may bring, and its arguments.
TASK = {INGEST: (app.SUBMIT_ARTIFACT, ["no-such-job"]), WRITER: (app.COMMIT_READY, [])}
OTHER = {INGEST: app.COMMIT_READY, WRITER: app.SUBMIT_ARTIFACT}


def message(queue: str) -> dict[str, Any]:
    task, args = TASK[queue]
    return celery_message(queue, task, *args)


def ahead(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


class Case(NamedTuple):
    """What is pushed into a queue, and a part of the reason why it is laid aside."""

    name: str
    make: Callable[[str], bytes]
    reason: str


def raw(name: str, entry: bytes, reason: str = "strict JSON") -> Case:
    return Case(name, lambda _: entry, reason)


def dumped(name: str, value: object, reason: str) -> Case:
    return raw(name, json.dumps(value).encode(), reason)


def changed(name: str, reason: str, **fields: object) -> Case:
    """Other fields of the message itself; `...` removes one. `content_type` is content-type."""

    def make(queue: str) -> bytes:
        return json.dumps(merged(message(queue), fields)).encode()

    return Case(name, make, reason)


def headers(name: str, reason: str, **fields: object) -> Case:
    return inner(name, reason, "headers", fields)


def properties(name: str, reason: str, **fields: object) -> Case:
    return inner(name, reason, "properties", fields)


def inner(name: str, reason: str, part: str, fields: dict[str, object]) -> Case:
    def make(queue: str) -> bytes:
        found = message(queue)
        found[part] = merged(found[part], fields)
        return json.dumps(found).encode()

    return Case(name, make, reason)


def merged(found: dict[str, Any], fields: dict[str, object]) -> dict[str, Any]:
    both = found | {key.replace("content_", "content-"): value for key, value in fields.items()}
    return {key: value for key, value in both.items() if value is not ...}


def embedded(name: str, **fields: object) -> Case:
    """Other tasks that shall run when this one is done."""

    def make(queue: str) -> bytes:
        return json.dumps(message(queue) | {"body": encoded([TASK[queue][1], {}, fields])}).encode()

    return Case(name, make, "embed")


def args(name: str, *values: object, reason: str = "args", **kwargs: object) -> Case:
    return changed(name, reason, body=encoded([list(values), kwargs, {}]))


def text_of(change: Callable[[str], str]) -> Callable[[str], bytes]:
    return lambda queue: change(json.dumps(message(queue))).encode()


_NEXT: dict[str, Any] = {
    "task": "bus.sweep",
    "args": [],
    "kwargs": {},
    "options": {},
    "subtask_type": None,
}

CASES = (
    # not JSON, or not an object
    raw("text", b"hello"),
    raw("empty", b""),
    raw("blank", b"   "),
    raw("null", b"null", "not a JSON object"),
    raw("list", b"[]", "not a JSON object"),
    raw("number", b"42", "not a JSON object"),
    raw("string", b'"a job"', "not a JSON object"),
    raw("bare-job-id", b"2026-01-08T05-12-33Z__baseline__alerts"),
    raw("raw-bytes", b"\xff\xfe\x00"),
    raw("pickle-bytes", b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01x\x94."),
    raw("byte-order-mark", b"\xef\xbb\xbf{}"),
    raw("deep", b"[" * 30_000 + b"]" * 30_000),
    raw("deeper", b"[" * 200_000 + b"]" * 200_000, "bytes; at most"),
    Case("truncated", text_of(lambda text: text[: len(text) // 2]), "strict JSON"),
    Case("nan", text_of(lambda t: t.replace('"retries": 0', '"retries": NaN')), "strict JSON"),
    Case(
        "1e400", text_of(lambda t: t.replace('"priority": 0', '"priority": 1e400')), "strict JSON"
    ),
    Case("same-key-twice", text_of(lambda t: '{"body": "", ' + t[1:]), "strict JSON"),
    Case("surrogate", text_of(lambda t: t.replace("py", "\\ud800")), "strict JSON"),
    # an object of another shape
    dumped("no-keys", {}, "headers is None"),
    dumped("a-notification", {"job_id": "job-1"}, "headers is None"),
    changed("headers-list", "headers is []", headers=[]),
    changed("no-headers", "headers is None", headers=...),
    changed("no-properties", "properties is None", properties=...),
    changed("properties-list", "properties is []", properties=[]),
    changed("no-body", "body is None", body=...),
    changed("body-object", "body is {}", body={}),
    changed("body-not-base64", "body is not base64", body="!!!"),
    changed("body-not-json", "body is not strict JSON", body=base64.b64encode(b"hello").decode()),
    changed("body-not-a-triple", "body is", body=encoded({"args": []})),
    changed("body-two-parts", "body is", body=encoded([[], {}])),
    changed("body-args-object", "args is", body=encoded([{}, {}, {}])),
    changed("body-embed-list", "embed is", body=encoded([["no-such-job"], {}, []]))._replace(
        reason=""
    ),
    changed(
        "protocol-1", "task is None", headers={}, body=encoded({"task": "bus.sweep", "id": "x"})
    ),
    properties("no-delivery-tag", "delivery_tag", delivery_tag=...),
    properties("delivery-tag-object", "delivery_tag", delivery_tag={}),
    properties("no-delivery-info", "delivery_info", delivery_info=...),
    properties("no-routing-key", "delivery_info", delivery_info={"exchange": ""}),
    properties("to-elsewhere", "routing_key", delivery_info={"exchange": "", "routing_key": "x"}),
    properties("body-encoding", "body_encoding", body_encoding="rot13"),
    properties("priority-object", "priority", priority={}),
    properties("reply-to-list", "reply_to", reply_to=[1]),
    # what would be decoded by something else than JSON
    changed("pickle", "content-type", content_type="application/x-python-serialize"),
    changed("yaml", "content-type", content_type="application/x-yaml"),
    changed("unknown-type", "content-type", content_type="application/x-unheard-of"),
    changed("unknown-encoding", "content-encoding", content_encoding="rot13"),
    headers("compressed", "compression", compression="application/x-gzip"),
    headers("unknown-compression", "compression", compression="zoo"),
    headers("typed-value", "typed value", id={"__type__": "uuid", "__value__": "x"}),
    # headers
    headers("no-id", "id is None", id=...),
    headers("id-list", "id is []", id=[]),
    headers("no-task", "task is None", task=...),
    headers("task-list", "task is []", task=[]),
    headers("unknown-task", "task is 'bus.no_such'", task="bus.no_such"),
    headers("task-of-celery", "task is 'celery.chord'", task="celery.chord"),
    Case("task-of-the-other-queue", lambda q: with_task(q, OTHER[q]), "task is"),
    headers("timelimit-text", "timelimit", timelimit="abc"),
    headers("timelimit-deadly", "timelimit", timelimit=[0.001, 0.001]),
    headers("retries-text", "retries", retries="many"),
    headers("eta-text", "eta", eta="soon"),
    headers("eta-number", "eta", eta=1e12),
    headers("eta-year-9999", "eta", eta="9999-12-31T23:59:59+00:00"),
    headers("eta-year-1", "eta", eta="0001-01-01T00:00:00+14:00"),
    headers("eta-in-a-month", "at most 7 days", eta=ahead(30)),
    headers("expires-text", "expires", expires="never"),
    headers("expires-number", "expires", expires=5),
    headers("group", "group", group="g-1"),
    headers("shadow-object", "shadow", shadow={"x": 1}),
    headers("stamps", "stamped_headers", stamps={"x": "y"}, stamped_headers=["x"]),
    # arguments
    args("path-for-id", "../../etc/passwd"),
    args("number-for-id", 7),
    args("object-for-id", {"job_id": "x"}),
    args("many-arguments", "a", "b", "c"),
    Case(
        "20-megabytes",
        lambda queue: json.dumps(message(queue) | {"body": "A" * (20 << 20)}).encode(),
        "bytes; at most",
    ),
    args("65-kilobytes", "x" * (65 << 10), reason="bytes; at most"),
    changed("keyword", "", body=encoded([["no-such-job"], {"job_id": "x"}, {}])),
    Case("zlib-body", lambda q: zlib.compress(json.dumps(message(q)).encode()), "strict JSON"),
    # other tasks, to be run by us
    embedded("callbacks", callbacks=[_NEXT]),
    embedded("errbacks", errbacks=[_NEXT]),
    embedded("chain", chain=[_NEXT]),
    embedded("chord", chord=_NEXT),
)


def with_task(queue: str, task: str) -> bytes:
    found = message(queue)
    found["headers"]["task"] = task
    return json.dumps(found).encode()


# ── the guard ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("queue", [INGEST, WRITER])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_entry_is_refused_for_its_reason(case: Case, queue: str) -> None:
    with pytest.raises(entries.BadMessageError) as caught:
        entries.check(case.make(queue), queue, app.TASKS[queue])
    assert case.reason in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_there_are_more_cases_than_a_prototype_was_tried_with() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 41


@pytest.mark.parametrize("queue", [INGEST, WRITER])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"eta": ahead(6.9), "expires": ahead(400)},
        {"eta": ahead(-400), "expires": ahead(-1)},
        {"eta": "2026-01-08T05:12:33"},
        {"timelimit": [None, None], "retries": 3, "shadow": None, "group": None},
        {"timelimit": [86_400, 86_400], "parent_id": "p", "ignore_result": True},
    ],
)
def test_what_our_own_processes_send_passes(queue: str, fields: dict[str, Any]) -> None:
    found = message(queue)
    found["headers"] |= fields
    entries.check(json.dumps(found).encode(), queue, app.TASKS[queue])


# ── on a bus ──────────────────────────────────────────────────────────────────────────────────────


def laid_aside(field: Field, client: redis.Redis) -> list[dict[str, Any]]:
    return [json.loads(entry) for entry in client.lrange(field.keys().dead, 0, -1)]


def holds(client: redis.Redis, key: str, count: int) -> bool:
    return client.llen(key) == count


def test_whatever_is_pushed_into_the_queues_is_laid_aside_and_work_goes_on(
    field: Field, campaign: Campaign
) -> None:
    """The fixture holds that the same processes live on and do a job."""
    pushes = [(case, queue) for case in CASES for queue in (INGEST, WRITER)]
    campaign.chance.shuffle(pushes)
    at_once = campaign.size(short=40, long=1)
    with field.server.client() as client:
        for start in range(0, len(pushes), at_once):
            some = pushes[start : start + at_once]
            client.delete(field.keys().dead)
            made = [(case, queue, case.make(queue)) for case, queue in some]
            for _, queue, entry in made:
                client.lpush(field.prefix + queue, entry)
            wait_until(partial(holds, client, field.keys().dead, len(made)), PATIENCE_S)
            found = Counter((k["queue"], k["entry"]) for k in laid_aside(field, client))
            shown = [(q, e[:2048].decode(errors="backslashreplace")) for _, q, e in made]
            assert found == Counter(shown)
            assert all(kept["reason"] for kept in laid_aside(field, client))
            assert field.submit().wait(PATIENCE_S).status == "committed"
        for noted in client.hvals(field.keys().unacked):  # none of them waits to come back
            entries.check_unacked(noted, app.TASKS)
    campaign.record(payloads=len(pushes), dead_workers=0)


def test_what_stock_celery_can_handle_is_left_to_it(field: Field) -> None:
    late = message(INGEST)
    late["headers"] |= {"expires": ahead(-1)}
    twice = message(INGEST)
    unknown_job = message(INGEST)
    for found in (late, twice, unknown_job):
        found["properties"]["delivery_info"]["routing_key"] = INGEST
    with field.server.client() as client:
        client.delete(field.keys().dead)
        pushed = [late, twice, twice, unknown_job, message(WRITER)]
        for found in pushed:
            queue = found["properties"]["delivery_info"]["routing_key"]
            client.lpush(field.prefix + queue, json.dumps(found))
        wait_until(lambda: not client.llen(field.keys().ingest), what="all are taken")
        assert field.submit().wait(PATIENCE_S).status == "committed"
        assert laid_aside(field, client) == []


def test_a_broadcast_that_is_none_is_laid_aside(field: Field) -> None:
    """Workers listen to `celery inspect` by PUBLISH."""
    with field.server.client() as client:
        client.delete(field.keys().dead)
        wait_until(lambda: len(client.client_list("pubsub")) >= 2, what="worker and writer listen")
        for entry in (b"null", b"[]", b"7", b"{}", b'{"properties": {}}', b"hello"):
            assert client.publish(f"{field.prefix}/0.celery.pidbox", entry) >= 2
        wait_until(lambda: client.llen(field.keys().dead) >= 10)  # "hello" is only logged by kombu
        assert {kept["queue"] for kept in laid_aside(field, client)} == {"celery.pidbox"}


def test_the_list_of_what_was_laid_aside_is_bounded(field: Field) -> None:
    with field.server.client() as client:
        client.delete(field.keys().dead)
        client.lpush(field.keys().dead, *[b"old"] * BAD_MAX)
        client.lpush(field.keys().ingest, b"x" * 10_000)
        wait_until(lambda: client.lindex(field.keys().dead, 0) != b"old")
        wait_until(lambda: client.llen(field.keys().dead) == BAD_MAX)
        assert len(client.lindex(field.keys().dead, 0)) < 3000


def test_every_message_that_celery_makes_of_our_tasks_passes(shared_field: Field) -> None:
    """As beat sends it, with a countdown, and once more after a child of the pool was killed."""
    app.use(shared_field.bus.settings)
    app.app.conf.update(
        app.configuration(shared_field.bus.settings, shared_field.bus.broker.address)
    )
    app.app.loader.import_default_modules()
    prefix = f"made-{uuid4()}:"
    options = {"global_keyprefix": prefix}
    with (
        shared_field.server.client() as client,
        Connection(shared_field.server.url, transport_options=options) as connection,
    ):
        for queue, tasks in app.TASKS.items():
            for name, takes_job_id in tasks.items():
                task: Any = app.app.tasks[name]
                args = ["job-1"] if takes_job_id else []
                sent: dict[str, Any] = {"connection": connection, "queue": queue}
                app.app.send_task(name, args, ignore_result=True, **sent)
                task.apply_async(args, expires=60.0, **sent)
                task.apply_async(args, countdown=5.0, **sent)
                made = json.loads(client.lindex(f"{prefix}{queue}", 0))
                request = Context(made["headers"] | made["properties"], args=args, kwargs={})
                again = task.signature_from_request(request, retries=1, countdown=1)
                again.apply_async(**sent)
            found = client.lrange(f"{prefix}{queue}", 0, -1)
            assert len(found) == 4 * len(tasks)
            for entry in found:
                entries.check(entry, queue, app.TASKS[queue])


# ── messages that come back, and what stock kombu makes of all this ───────────────────────────────


@contextmanager
def consuming(
    field: Field, transport: str, prefix: str
) -> Iterator[tuple[Connection, Any, list[Any]]]:
    """A consumer of the queue `ingest` in this process, and the task ids it was given."""
    options = {"global_keyprefix": prefix, "guarded": app.TASKS, "visibility_timeout": 0}
    heard: list[Any] = []

    def hear(_: object, found: Any) -> None:
        heard.append(found.headers["id"])
        found.ack()

    with Connection(field.server.url, transport=transport, transport_options=options) as connection:
        channel: Any = connection.channel()
        queue = Queue(INGEST, channel=channel)
        with Consumer(channel, [queue], callbacks=[hear], accept=["json"]):
            yield connection, channel, heard


GUARDED = "bus.broker.guard:Transport"
STOCK = "kombu.transport.redis:Transport"


def drained(connection: Connection) -> bool:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.2)
    return True


@pytest.mark.parametrize(
    "kept",
    [b"hello", b"null", b"{}", b"[1, 2, 3]", b'[{}, "", "ingest"]', b'[null, "", "ingest"]'],
)
def test_a_bad_note_of_an_unacknowledged_message_is_laid_aside(
    shared_field: Field, kept: bytes
) -> None:
    prefix = f"again-{uuid4()}:"
    good = message(INGEST)
    noted = {"bad": kept, "good": json.dumps([good, "", INGEST]).encode()}
    with (
        shared_field.server.client() as client,
        consuming(shared_field, GUARDED, prefix) as (connection, channel, heard),
    ):
        for tag, note in noted.items():
            client.hset(f"{prefix}unacked", tag, note)
            client.zadd(f"{prefix}unacked_index", {tag: 0})
        channel.qos.restore_visible()
        wait_until(lambda: drained(connection) and heard)
        assert heard == [good["headers"]["id"]]
        assert client.hlen(f"{prefix}unacked") == client.zcard(f"{prefix}unacked_index") == 0
        (aside,) = [json.loads(entry) for entry in client.lrange(f"{prefix}bus:dead", 0, -1)]
        assert aside["queue"] == "unacked"
        assert aside["reason"]


def test_a_message_on_which_celery_fails_all_the_same_is_laid_aside(shared_field: Field) -> None:
    prefix = f"fails-{uuid4()}:"
    with (
        shared_field.server.client() as client,
        consuming(shared_field, GUARDED, prefix) as (connection, _, __),
    ):
        callbacks: Any = connection.transport._callbacks  # type: ignore[attr-defined]
        taken = callbacks[INGEST]

        def fail(found: dict[str, Any]) -> None:
            taken(found)
            raise TypeError("a defect of Celery")

        callbacks[INGEST] = fail
        client.lpush(f"{prefix}{INGEST}", json.dumps(message(INGEST)))
        wait_until(lambda: drained(connection) and client.llen(f"{prefix}bus:dead"))
        assert client.hlen(f"{prefix}unacked") == 0


@pytest.mark.parametrize(("transport", "goes_on"), [(GUARDED, True), (STOCK, False)])
def test_an_acknowledgement_that_redis_did_not_hear_does_not_stop_a_consumer(
    shared_field: Field, monkeypatch: pytest.MonkeyPatch, transport: str, *, goes_on: bool
) -> None:
    """Stock kombu takes the message for one at work, and with a prefetch of one never another."""

    def cut(*_: object) -> NoReturn:
        raise redis.ConnectionError("cut")

    prefix = f"ack-{uuid4()}:"
    with (
        shared_field.server.client() as client,
        consuming(shared_field, transport, prefix) as (connection, channel, heard),
    ):
        channel.basic_qos(0, 1, False)  # noqa: FBT003 - kombu's own signature
        client.lpush(f"{prefix}{INGEST}", *[json.dumps(message(INGEST)) for _ in range(2)])
        with monkeypatch.context() as patch, suppress(redis.ConnectionError):
            patch.setattr(channel.qos, "_remove_from_indices", cut)
            wait_until(lambda: drained(connection) and heard)
        for _ in range(5):
            drained(connection)
        assert len(set(heard)) == (2 if goes_on else 1)


@pytest.mark.parametrize(
    ("transport", "error"), [(GUARDED, redis.ConnectionError), (STOCK, AttributeError)]
)
def test_an_ack_after_the_connection_was_closed_is_a_lost_connection(
    shared_field: Field, transport: str, error: type[Exception]
) -> None:
    """Celery expects those and goes on; of anything else, as stock kombu raises, the worker dies."""
    connection = Connection(shared_field.server.url, transport=transport)
    channel: Any = connection.channel()
    connection.close()
    with pytest.raises(error):
        channel.qos.ack("tag")


@pytest.mark.parametrize(
    "name",
    ["text", "null", "no-properties", "body-encoding", "delivery-tag-object", "headers-list"],
)
def test_stock_kombu_does_fail_on_them(shared_field: Field, name: str) -> None:
    """Else the tests above would show nothing."""
    case = next(case for case in CASES if case.name == name)
    prefix = f"stock-{uuid4()}:"
    with (
        shared_field.server.client() as client,
        consuming(shared_field, STOCK, prefix) as (connection, _, heard),
    ):
        client.lpush(f"{prefix}{INGEST}", case.make(INGEST))
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            drained(connection)
        assert heard == []
