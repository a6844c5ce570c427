"""The journal: numbers taken once, a chain that shows every edit, no temporary left behind."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from bus.errors import Damaged
from bus.journal import GENESIS, Journal, NumberTakenError
from bus.lake import Lake
from bus.model import CommitRecord, JobRecord, Outcome

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
