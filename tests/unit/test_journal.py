"""The journal: numbers taken once, a chain that shows every edit, no temporary left behind."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from bus import writer as writer_module
from bus.errors import Damaged, Unavailable
from bus.journal import GENESIS, Journal, NumberTakenError
from bus.lake import Lake
from bus.manifest import Manifest
from bus.model import CommitRecord, JobRecord, JobState, Outcome
from bus.verify import verify
from tests.pipeline import LightCatalog, Pipeline, facts, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from bus.journal import Commit

NOW = "2026-01-08T05:12:33.000000Z"


def record(seq: int, prev: str, writer: str = "test") -> CommitRecord:
    job = JobRecord(job_id=f"j{seq}", verdict_id=f"v{seq}", outcome=Outcome.REJECTED)
    return CommitRecord(seq=seq, prev=prev, committed_at_utc=NOW, writer=writer, jobs=[job])


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    lake.create()
    return lake


def grow(journal: Journal, count: int) -> list[Commit]:
    commits: list[Commit] = []
    prev = GENESIS
    for seq in range(1, count + 1):
        commits.append(journal.append(record(seq, prev)))
        prev = commits[-1].sha256
    return commits


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def test_a_record_reads_back_as_it_was_appended(lake: Lake) -> None:
    journal = Journal(lake)
    commits = grow(journal, 3)
    assert [journal.read(seq) for seq in (1, 2, 3)] == commits
    assert list(journal.after(0, GENESIS)) == commits
    assert list(journal.after(2, commits[1].sha256)) == commits[2:]
    assert journal.read(4) is None


def test_a_record_is_read_only_and_nothing_lies_beside_it(lake: Lake) -> None:
    grow(Journal(lake), 2)
    names = sorted(os.listdir(lake.journal))
    assert names == ["000000000001.json", "000000000002.json"]
    assert {(lake.journal / n).stat().st_mode & 0o777 for n in names} == {0o444}
    assert {(lake.journal / n).stat().st_nlink for n in names} == {1}


def test_a_number_is_taken_once_and_the_first_record_stays(lake: Lake) -> None:
    journal = Journal(lake)
    first = journal.append(record(1, GENESIS, "first"))
    with pytest.raises(NumberTakenError):
        journal.append(record(1, GENESIS, "second"))
    assert journal.read(1) == first
    assert os.listdir(lake.journal) == ["000000000001.json"]


def test_a_temporary_file_of_a_dead_writer_with_our_pid_is_never_written_through(
    lake: Lake,
) -> None:
    # A writer in a container has the same pid in each life. It may die between giving the record
    # its number and removing the temporary name, which then is a second name of the record.
    journal = Journal(lake)
    journal.append(record(1, GENESIS, "dead"))
    before = lake.record_path(1).read_bytes()
    os.link(lake.record_path(1), lake.journal / f".1.{os.getpid()}.tmp")
    with pytest.raises(NumberTakenError):
        journal.append(record(1, GENESIS, "its successor, behind by one"))
    assert lake.record_path(1).read_bytes() == before


def test_an_edited_record_breaks_the_chain_at_the_next_one(lake: Lake) -> None:
    journal = Journal(lake)
    grow(journal, 3)
    data = lake.record_path(2).read_bytes()
    overwrite(lake.record_path(2), data.replace(b'"j2"', b'"jX"'))
    with pytest.raises(Damaged, match="record 3 does not follow record 2"):
        list(journal.after(0, GENESIS))


@pytest.mark.parametrize("data", [b"", b"{", b'{"version":1}', b"\0" * 400])
def test_an_unreadable_record_is_damage_with_its_path_not_a_traceback(
    lake: Lake, data: bytes
) -> None:
    journal = Journal(lake)
    grow(journal, 2)
    overwrite(lake.record_path(2), data)
    with pytest.raises(Damaged, match="record 2 is unreadable") as caught:
        journal.read(2)
    assert caught.value.where == str(lake.record_path(2))


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (b'"version":1', b'"version":2', "is of version 2"),
        (b'"mutations":[]', b'"mutations":[{"op":"fork","target":"x"}]', "jobs.0.mutations.0"),
        (b'"warnings":[]', b'"warnings":[],"priority":3', "jobs.0.priority"),
        (b'"outcome":"rejected"', b'"outcome":"postponed"', "jobs.0.outcome"),
    ],
    ids=["version", "mutation", "field", "outcome"],
)
def test_a_record_of_a_newer_release_is_told_from_damage(
    lake: Lake, old: bytes, new: bytes, place: str
) -> None:
    journal = Journal(lake)
    grow(journal, 2)
    data = lake.record_path(2).read_bytes()
    assert old in data
    overwrite(lake.record_path(2), data.replace(old, new))
    with pytest.raises(Unavailable, match="journal record 2") as caught:
        journal.read(2)
    assert (caught.value.code, caught.value.where) == ("E512", str(lake.record_path(2)))
    assert place in caught.value.message
    assert "Upgrade" in caught.value.hint


def test_what_is_missing_from_a_record_is_damage_whatever_else_it_says(lake: Lake) -> None:
    journal = Journal(lake)
    grow(journal, 1)
    data = lake.record_path(1).read_bytes().replace(b'"writer":"test"', b'"author":"test"')
    overwrite(lake.record_path(1), data)
    with pytest.raises(Damaged, match="record 1 is unreadable"):
        journal.read(1)


def test_a_record_under_another_number_is_damage(lake: Lake) -> None:
    journal = Journal(lake)
    grow(journal, 2)
    overwrite(lake.record_path(2), lake.record_path(1).read_bytes())
    with pytest.raises(Damaged, match="record 2 says it is 1"):
        journal.read(2)


def test_a_full_disk_leaves_no_half_written_record(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(lake)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return real(fd, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(3):
            with pytest.raises(OSError, match="no space"):
                journal.append(record(1, GENESIS))
    assert os.listdir(lake.journal) == []
    assert journal.append(record(1, GENESIS)) == journal.read(1)


def test_a_gap_is_told_from_the_end(lake: Lake) -> None:
    journal = Journal(lake)
    journal.check_gapless()
    grow(journal, 4)
    journal.check_gapless()
    lake.record_path(2).unlink()
    with pytest.raises(Damaged, match="record 2 is missing, but record 3 is there"):
        journal.check_gapless()
    assert journal.numbers() == [1, 3, 4]


@pytest.mark.parametrize("manifest", ["there", "gone", "behind"])
def test_no_writer_starts_on_a_journal_that_a_newer_release_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    monkeypatch.setattr(writer_module, "Catalog", LightCatalog)
    pipe = Pipeline(tmp_path)
    for number in range(2):
        pipe.judged(verdict(f"j{number}", facts(f"n{number}", number)))
        pipe.commit()
    journal = Journal(pipe.lake)
    if manifest == "behind":
        *_, newest = journal.after(0, GENESIS)
        journal.append(record(3, newest.sha256))
    last = journal.check_gapless()
    path = pipe.lake.record_path(last)
    overwrite(path, path.read_bytes().replace(b'"version":1', b'"version":2'))
    if manifest == "gone":
        Manifest.delete(pipe.lake)
    pipe.judged(verdict("next", facts("next", 9)))
    for _ in range(2):  # it gives the lock back
        with pytest.raises(Unavailable, match="is of version 2") as caught:
            pipe.commit()
        assert caught.value.code == "E512"
    assert journal.check_gapless() == last
    assert pipe.state("next") is JobState.READY
    findings = verify(pipe.lake, pipe.settings, pipe.registry, "sample").findings
    (told,) = (found for found in findings if found.where == str(path))
    assert told.invariant == 3
    if manifest != "there":  # else it is told that the record was edited since it was indexed
        assert "is of version 2" in told.message
        assert "Upgrade" in told.fix
