"""The change feed: told once, in order, the same after a rebuild, and enough to keep a copy."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import closing
from itertools import islice
from threading import Thread
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from bus import changes as feed
from bus.changes import Change, changes
from bus.errors import NotFound
from bus.manifest import Manifest
from bus.model import Alias, MarkDamaged, Outcome, Pin, Restore, Supersede, Tag, Tombstone, Untag
from tests.any_history import COMMITS, Story
from tests.history import History
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "lake")
    yield made
    made.manifest.close()


def told(history: History, since: int = 0, **asked: Any) -> list[tuple[int, str]]:
    return [(one.seq, one.change) for one in changes(history.lake, since, **asked)]


def test_a_lake_without_commits_has_no_changes(history: History) -> None:
    assert told(history) == []
    with pytest.raises(NotFound, match="no commit 1"):
        changes(history.lake, 1)


def test_each_fact_is_told_with_its_commit_its_artifact_and_its_details(history: History) -> None:
    source = history.artifact(name="s", kind="k")
    made = history.artifact(
        name="m", kind="l", inputs=[source.artifact_id], supersedes=[source.artifact_id],
        tags={"t": ["1"]},
    )  # fmt: skip
    history.commit(history.job(source, made, job_id="j1"))
    again = made.model_copy(update={"decision": "deduped", "mode": "file_hash"})
    problem = {"code": "E301", "where": "a.parquet", "message": "missing", "hint": "write it"}
    bad = history.job(job_id="bad", outcome=Outcome.REJECTED, problems=[problem])
    history.commit(history.job(again, job_id="j2", run_id="r2"), bad)
    s, m = source.artifact_id, made.artifact_id
    tagged = Tag(op="tag", target=s, tags={"t": ["1", "2"]})
    history.commit(
        history.change(
            tagged,
            Alias(op="alias", kind="k", alias="best", target=s),
            Pin(op="pin", pin="paper", target=[m]),
            MarkDamaged(op="mark_damaged", object=made.sha256, found="gone"),
        )
    )
    gone = Tombstone(op="tombstone", target=m, reason="wrong")
    history.commit(
        history.change(
            tagged,  # which it carries already
            Untag(op="untag", target=s, tags={"t": ["2"]}),
            Alias(op="alias", kind="k", alias="best", target=m),
            Restore(op="restore", object=made.sha256),
            gone,
        )
    )
    revived = made.model_copy(update={"decision": "revived"})
    no_alias = Alias(op="alias", kind="k", alias="best", target=None)
    history.commit(history.job(revived, mutations=[no_alias]))
    rows = [
        (one.seq, one.change, one.kind, one.artifact_id, one.job_id)
        for one in changes(history.lake)
        if one.change != "committed"
    ]
    last = rows[-3][-1]
    assert rows == [
        (1, "created", "k", s, "j1"),
        (1, "created", "l", m, "j1"),
        (1, "derived", "l", m, None),
        (1, "tagged", "l", m, None),
        (1, "superseded", "k", s, None),
        (2, "rejected", "things", None, "bad"),
        (2, "deduped", "l", m, "j2"),
        (3, "tagged", "k", s, None),
        (3, "tagged", "k", s, None),
        (3, "damaged", "l", m, None),
        (3, "pinned", "l", m, None),
        (3, "aliased", "k", s, None),
        (4, "untagged", "k", s, None),
        (4, "tombstoned", "l", m, None),
        (4, "restored", "l", m, None),
        (4, "aliased", "k", m, None),
        (5, "revived", "l", m, last),
        (5, "untombstoned", "l", m, None),
        (5, "unaliased", "k", m, None),
    ]
    by = {(one.seq, one.change): one for one in changes(history.lake)}
    assert by[1, "created"].details["run_id"] == "run-1"
    assert by[1, "derived"].details == {"input": s}
    assert by[1, "superseded"].details == {"by": m}
    assert by[2, "rejected"].details["codes"] == ["E301"]
    assert by[2, "deduped"].details["mode"] == "file_hash"
    assert by[3, "damaged"].details == {"file_hash": made.file_hash, "found": "gone"}
    assert by[4, "aliased"].details == {"alias": "best", "was": s}
    assert by[4, "tombstoned"].details == {"reason": "wrong"}
    assert by[1, "created"].as_dict()["at"] == "2026-01-08T06:00:00.000000Z"


def test_it_goes_on_after_any_commit_and_may_be_of_one_kind(history: History) -> None:
    for kind in ("k", "l", "k"):
        history.commit(history.job(history.artifact(kind=kind), kind=kind))
    for since in range(4):
        later = [(n, c) for n in range(since + 1, 4) for c in ("committed", "created")]
        assert told(history, since) == later
    assert told(history, kind="k") == [(n, c) for n in (1, 3) for c in ("committed", "created")]
    assert told(history, 1, kind="l") == [(2, "committed"), (2, "created")]
    by = Supersede(op="supersede", target=_id(history, "l"), by=_id(history, "k"))
    history.commit(history.change(by, kind="other"))
    assert told(history, 3, kind="l") == [(4, "superseded")]


def _id(history: History, kind: str) -> str:
    sql = "SELECT artifact_id FROM artifact_facts WHERE artifact_type = ?"
    found: str = history.manifest.rows(sql, (kind,))[0][0]
    return found


def test_long_spans_are_read_in_pieces(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        history.commit(*(history.job(history.artifact(), history.artifact()) for _ in range(2)))
    whole = list(changes(history.lake))
    read: list[int] = []
    real = feed._window

    def noted(*asked: Any) -> Any:
        found = real(*asked)
        read.append(len(found[1]) if found else 0)
        return found

    monkeypatch.setattr(feed, "_window", noted)
    for size, pieces in ((1, [6] * 7), (9, [12, 12, 12, 6]), (1000, [42])):
        monkeypatch.setattr(feed, "_WINDOW_ARTIFACTS", size)
        read.clear()
        assert list(changes(history.lake)) == whole
        assert read == [*pieces, 0]


def test_a_follower_is_told_of_commits_as_they_come(history: History) -> None:
    history.commit(history.job(history.artifact(name="first")))
    got: list[Change] = []
    follower = Thread(
        target=lambda: got.extend(islice(changes(history.lake, follow=True), 6)), daemon=True
    )
    follower.start()
    for number in range(2):
        # The writer appends the record before the manifest knows of it.
        history.lake.record_path(history.seq + 1).touch()
        history.commit(history.job(history.artifact(name=f"next-{number}")))
    wait_until(lambda: not follower.is_alive(), what="six changes were told")
    names = [one.details["name"] for one in got if one.change == "created"]
    assert names == ["first", "next-0", "next-1"]


def test_a_slow_reader_keeps_no_transaction_open(history: History) -> None:
    for _ in range(3):
        history.commit(history.job(history.artifact()))
    slow = changes(history.lake)
    next(slow)
    history.commit(history.job(history.artifact()))
    with closing(Manifest.open(history.lake)) as other:
        (folded,) = other.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    assert folded[0] == 0, "somebody still reads what was there before"
    assert [one.seq for one in slow][-1] == 4


# ── keeping a copy ───────────────────────────────────────────────────────────────────────────────


class Copy:
    """What somebody knows who has only the feed."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.facts: set[tuple[Any, ...]] = set()
        self.jobs: Counter[str] = Counter()

    def take(self, one: Change) -> None:
        match one.change:
            case "committed" | "rejected" | "repeated":
                self.jobs[one.change] += 1
            case "created" | "revived":
                self.there.add(str(one.artifact_id))
                for what in ("damaged", "purged"):  # it stands on bytes that are whole
                    self._set((what, one.artifact_id), holds=False)
            case "deduped":
                assert one.artifact_id in self.there
            case "aliased":
                was = one.details.get("was")
                self._set(("alias", one.kind, one.details["alias"], was), holds=False)
                self._set(("alias", one.kind, one.details["alias"], one.artifact_id))
            case "unaliased":
                key = ("alias", one.kind, one.details["alias"], one.artifact_id)
                self._set(key, holds=False)
            case "restored":
                self._set(("damaged", one.artifact_id), holds=False)
            case "unpurged":
                self._set(("purged", one.artifact_id), holds=False)
            case "damaged" | "purged":
                self._set((one.change, one.artifact_id))
            case change:
                holds = not change.startswith("un")
                details = tuple(sorted(one.details.items()))
                fact = (change.removeprefix("un"), one.artifact_id, details)
                assert (fact in self.facts) is not holds, "a fact that began holds until it ends"
                self._set(fact, holds=holds)

    def _set(self, fact: tuple[Any, ...], *, holds: bool = True) -> None:
        (self.facts.add if holds else self.facts.discard)(fact)


COPIED = {
    "there": "SELECT artifact_id FROM artifacts",
    "damaged": "SELECT artifact_id FROM damaged",
    "purged": "SELECT artifact_id FROM artifacts WHERE status = 'purged'",
    "tagged": "SELECT artifact_id, k, v FROM artifact_tags",
    "derived": "SELECT artifact_id, input_artifact_id FROM artifact_lineage",
    "superseded": "SELECT supersedes_artifact_id, artifact_id FROM artifact_supersedes",
    "tombstoned": "SELECT artifact_id, reason FROM tombstone_facts WHERE ended_seq IS NULL",
    "pinned": "SELECT artifact_id, pin FROM pins",
    "alias": "SELECT kind, alias, artifact_id FROM aliases",
}


def known_to(copy: Copy) -> dict[str, set[tuple[Any, ...]]]:
    found: dict[str, set[tuple[Any, ...]]] = {what: set() for what in COPIED}
    found["there"] = {(artifact_id,) for artifact_id in copy.there}
    for what, *rest in copy.facts:
        flat = (
            rest if what in {"alias", "damaged", "purged"} else (rest[0], *(v for _, v in rest[1]))
        )
        if rest[-1] is not None:
            found[what].add(tuple(flat))
    return found


@hypothesis.settings(max_examples=25)
@hypothesis.given(COMMITS)
def test_whoever_takes_every_change_knows_what_the_manifest_shows_after_each_commit(
    commits: list[list[tuple[str, list[int]]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        story = Story(folder, in_memory=False)
        copy, seq = Copy(), 0
        for jobs in commits:
            story.commit(jobs)
            for one in changes(story.lake, seq):
                copy.take(one)
                seq = one.seq
            now = story.ledger.manifest
            assert known_to(copy) == {what: set(now.rows(sql)) for what, sql in COPIED.items()}
            outcomes = now.rows("SELECT outcome, count(*) FROM jobs GROUP BY 1")
            assert copy.jobs == Counter(dict(outcomes))
        story.close()
