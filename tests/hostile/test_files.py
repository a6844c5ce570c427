"""What hostile, broken and lying files get, through the real intake, on a real file system."""

from __future__ import annotations

import csv
import hashlib
import os
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus.hashing import file_hash
from bus.intake import Intake
from bus.settings import Settings
from bus.specs import Registry
from tests.jobs import (
    codes,
    commit,
    judged,
    manifest_of,
    new_lake,
    parquet_bytes,
    put_job,
    small_table,
    verdict_of,
)
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.lake import Lake

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"
GOOD = parquet_bytes(small_table(1000))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path)


@pytest.fixture
def intake(lake: Lake) -> Intake:
    settings = Settings(lake=lake.root, quiet_s=0.0, incomplete_after_s=0.001)
    return Intake(lake, settings, Registry.built_in())


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of jobs, and durability is not what they are about."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def staged_without(lake: Lake, relpath: str) -> Path:
    """A job that lists `relpath`, which is not there yet; call `commit` when it is."""
    path = put_job(lake, "job", {relpath: None})
    path.mkdir(exist_ok=True)
    return path


# ── things that are no plain files ────────────────────────────────────────────────────────────


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _link(path: Path) -> None:
    target = path.parents[3] / "elsewhere.parquet"
    target.write_bytes(GOOD)
    path.symlink_to(target)


def _magic_link(path: Path) -> None:
    path.symlink_to("/proc/self/exe")


NOT_PLAIN: dict[str, Callable[[Path], None]] = {
    "fifo": _fifo,
    "socket": _socket,
    "link": _link,
    "magic link": _magic_link,
    "directory": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_what_is_no_plain_file_is_refused_without_blocking(
    case: str, lake: Lake, intake: Intake
) -> None:
    path = staged_without(lake, "a.parquet")
    NOT_PLAIN[case](path / "a.parquet")

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == ["E302"]
    assert verdict.problems[0].where == "a.parquet"


@pytest.mark.needs_root
def test_a_device_is_refused(lake: Lake, intake: Intake) -> None:
    path = staged_without(lake, "a.parquet")
    os.mknod(path / "a.parquet", 0o644 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero

    assert codes(judged(intake, lake, "job")) == ["E302"]


def test_a_linked_folder_is_not_followed(lake: Lake, intake: Intake, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.parquet").write_bytes(GOOD)
    path = staged_without(lake, "deep/a.parquet")
    (path / "deep").symlink_to(tmp_path / "outside")

    assert codes(judged(intake, lake, "job")) == ["E302"]
    assert stat.S_IMODE((tmp_path / "outside" / "a.parquet").stat().st_mode) != 0o444


def test_a_linked_job_directory_is_left_alone(lake: Lake, intake: Intake, tmp_path: Path) -> None:
    put_job(lake, "job")
    (lake.inbox / "job").rename(tmp_path / "outside")
    (lake.inbox / "job").symlink_to(tmp_path / "outside")

    assert intake.drain("job").judged == []
    assert (lake.inbox / "job").is_symlink()


def test_a_missing_file_is_named(lake: Lake, intake: Intake) -> None:
    staged_without(lake, "a.parquet")

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == ["E301"]
    assert verdict.problems[0].where == "a.parquet"


# ── who else has the file ─────────────────────────────────────────────────────────────────────


def test_a_hard_link_is_adopted_by_copy(lake: Lake, intake: Intake, tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(GOOD)
    path = staged_without(lake, "a.parquet")
    os.link(tmp_path / "mine.parquet", path / "a.parquet")

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == []
    mine = tmp_path / "mine.parquet"
    [stored] = lake.all_objects()
    assert stored.stat().st_ino != mine.stat().st_ino
    assert stat.S_IMODE(mine.stat().st_mode) != 0o444, "the producer's own file stays as it was"
    mine.write_bytes(b"overwritten")
    assert file_hash(stored) == verdict.artifacts[0].file_hash


def test_two_names_of_one_file_within_a_job_become_two_files(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job", {"a.parquet": GOOD, "b.parquet": None})
    os.link(path / "a.parquet", path / "b.parquet")

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == []
    assert len(list(lake.all_objects())) == 1


def test_an_accepted_file_cannot_be_written_any_more(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", {"a.parquet": GOOD})
    judged(intake, lake, "job")

    [stored] = lake.all_objects()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o444
    assert stored.samefile(lake.ready / "job" / "a.parquet")


def test_a_job_whose_file_is_still_open_for_writing_waits(lake: Lake) -> None:
    path = put_job(lake, "job", {"a.parquet": GOOD})
    patient = Intake(lake, Settings(lake=lake.root), Registry.built_in())

    with (path / "a.parquet").open("r+b"):
        result = patient.drain("job")
        assert result.judged == []
        assert 0 < result.later["job"] <= 5
        assert result.faults == {}
    assert patient.drain("job").judged == ["job"]
    assert codes(verdict_of(lake, "job")) == []


def test_a_file_that_stays_open_for_writing_is_refused_in_the_end(
    lake: Lake, intake: Intake
) -> None:
    path = put_job(lake, "job", {"a.parquet": GOOD})

    deadline = time.monotonic() + 10
    with (path / "a.parquet").open("r+b"):
        while not intake.drain("job").judged:  # this intake waits a millisecond
            assert time.monotonic() < deadline

    assert codes(verdict_of(lake, "job")) == ["E316"]


# ── bytes that are not what they should be ────────────────────────────────────────────────────


def _flipped() -> bytes:
    """One bit of the only data page of a column changed; the page has a checksum."""
    at = pq.ParquetFile(pa.BufferReader(GOOD)).metadata.row_group(0).column(0).data_page_offset
    data = bytearray(GOOD)
    data[at + 200] ^= 1
    return bytes(data)


def _encrypted() -> bytes:
    from pyarrow.parquet import encryption  # noqa: PLC0415 - needed here only

    class Plain(encryption.KmsClient):  # type: ignore[misc]  # pyarrow has no types
        def wrap_key(self, key: bytes, _master: str) -> bytes:
            return key.hex().encode()

        def unwrap_key(self, key: bytes, _master: str) -> bytes:
            return bytes.fromhex(key.decode())

    factory = encryption.CryptoFactory(lambda _: Plain())
    config = encryption.EncryptionConfiguration(
        footer_key="f", uniform_encryption=True, plaintext_footer=False
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, small_table().schema, encryption_properties=properties) as writer:
        writer.write_table(small_table())
    return bytes(sink.getvalue())


def _nested(depth: int) -> pa.Table:
    kind: pa.DataType = pa.int64()
    for _ in range(depth):
        kind = pa.struct([("x", kind)])
    return pa.table({"deep": pa.nulls(1, kind)})


BAD_BYTES: dict[str, tuple[bytes, set[str]]] = {
    "empty": (b"", {"E307"}),
    "text": (b"n,text\n1,row\n" * 100, {"E307"}),
    "magic only": (b"PAR1PAR1", {"E307", "E308"}),
    "truncated": (GOOD[: len(GOOD) // 2], {"E307", "E308"}),
    "without its last byte": (GOOD[:-1], {"E307", "E308"}),
    "footer length 2 GiB": (GOOD[:-8] + b"\xff\xff\xff\x7fPAR1", {"E307", "E308"}),
    "footer length 0": (GOOD[:-8] + b"\0\0\0\0PAR1", {"E307", "E308"}),
    "trailing bytes": (GOOD + b"\n", {"E307", "E308"}),
    "bit flipped": (_flipped(), {"E308"}),
    "encrypted": (_encrypted(), {"E309"}),
    "no columns": (parquet_bytes(pa.table({})), {"E312"}),
    "17 levels": (parquet_bytes(_nested(18)), {"E313"}),
    "names that differ by case": (parquet_bytes(pa.table({"a": [1], "A": [2]})), {"E311"}),
    "control character in a name": (parquet_bytes(pa.table({"a\x1b[2J": [1]})), {"E314"}),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_a_bad_file_is_refused_and_kept(case: str, lake: Lake, intake: Intake) -> None:
    data, allowed = BAD_BYTES[case]
    put_job(lake, "job", {"a.parquet": data})

    verdict = judged(intake, lake, "job")

    assert set(codes(verdict)) <= allowed
    assert codes(verdict)
    assert verdict.problems[0].where.startswith("a.parquet")
    assert (lake.ready / "job" / "a.parquet").read_bytes() == data
    assert list(lake.all_objects()) == []


def test_ten_sparse_gigabytes_are_refused_at_once(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job", {"a.parquet": b"PAR1"})
    os.truncate(path / "a.parquet", 10 << 30)

    assert set(codes(judged(intake, lake, "job"))) <= {"E307", "E308", "E310"}


def test_one_bad_file_refuses_the_job_and_stores_nothing_of_it(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", {"a.parquet": GOOD, "b.parquet": b"", "c.parquet": _flipped()})

    verdict = judged(intake, lake, "job")

    assert [p.where.split(":")[0] for p in verdict.problems] == ["b.parquet", "c.parquet"]
    assert list(lake.all_objects()) == []


# ── lies ──────────────────────────────────────────────────────────────────────────────────────

LIES: dict[str, tuple[dict[str, object], str]] = {
    "rows": ({"rows": 999}, "E305"),
    "sha256": ({"sha256": "0" * 64}, "E304"),
    "size": ({"size_bytes": len(GOOD) - 1}, "E304"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_about_a_file_is_refused_with_the_truth(
    case: str, lake: Lake, intake: Intake
) -> None:
    claims, code = LIES[case]
    manifest = manifest_of("job", ["a.parquet"])
    manifest["artifacts"][0].update(claims)
    put_job(lake, "job", {"a.parquet": GOOD}, manifest=manifest)

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == [code]
    truths = ("1,000", hashlib.sha256(GOOD).hexdigest(), f"{len(GOOD):,}")
    assert any(truth in verdict.problems[0].message for truth in truths)


def test_the_truth_is_accepted(lake: Lake, intake: Intake) -> None:
    manifest = manifest_of("job", ["a.parquet"])
    sha256 = hashlib.sha256(GOOD).hexdigest()
    manifest["artifacts"][0] |= {"rows": 1000, "sha256": sha256, "size_bytes": len(GOOD)}
    put_job(lake, "job", {"a.parquet": GOOD}, manifest=manifest)

    facts = judged(intake, lake, "job").artifacts[0]

    assert (facts.rows, facts.sha256, facts.size_bytes) == (1000, sha256, len(GOOD))
    assert [c["name"] for c in facts.columns] == ["n", "text"]
    assert facts.content_hash.startswith("ch1:")


# ── incomplete jobs of shell scripts ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("content", [None, b"", GOOD[:-100]], ids=["missing", "empty", "cut"])
def test_a_job_that_is_still_being_copied_waits_and_is_refused_in_the_end(
    content: bytes | None, lake: Lake, intake: Intake
) -> None:
    path = put_job(lake, "job", {"a.parquet": content}, marker=False)
    patient = Intake(lake, Settings(lake=lake.root, quiet_s=0.0), Registry.built_in())

    result = patient.drain("job")
    assert result.judged == []
    assert 0 < result.later["job"] <= 5
    assert path.exists(), "an unfinished job stays where its producer writes it"

    wait_until(lambda: intake.drain("job").judged == ["job"], what="its time is over")
    assert codes(verdict_of(lake, "job")) == ["E306"]


def test_a_job_that_is_completed_in_time_is_taken(lake: Lake) -> None:
    path = put_job(lake, "job", {"a.parquet": None}, marker=False)
    patient = Intake(lake, Settings(lake=lake.root, quiet_s=0.0), Registry.built_in())
    assert patient.drain("job").judged == []
    (path / "a.parquet").write_bytes(GOOD)

    assert patient.drain("job").judged == ["job"]


def test_a_copied_job_whose_marker_came_first_waits_for_the_rest(lake: Lake) -> None:
    path = put_job(lake, "job", {"a.parquet": GOOD})
    (path / "a.parquet").unlink()
    patient = Intake(lake, Settings(lake=lake.root, quiet_s=5.0), Registry.built_in())

    assert 4 < patient.drain("job").later["job"] <= 5
    (path / "a.parquet").write_bytes(GOOD)
    assert patient.drain("job").judged == ["job"]


def test_nothing_is_looked_at_before_commit_exists(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job", {"a.parquet": GOOD})
    (path / "COMMIT").unlink()

    result = intake.drain("job")

    assert (result.judged, result.later) == ([], {})
    commit(path)
    assert intake.drain("job").judged == ["job"]


# ── real files of other writers ───────────────────────────────────────────────────────────────


@pytest.mark.needs_data
@pytest.mark.usefixtures("no_sync")
def test_the_real_files_end_as_their_verdicts_say(lake: Lake, intake: Intake) -> None:
    with (REAL_DATA / "verdicts.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 190
    for i, row in enumerate(rows):
        put_job(lake, f"f{i}", {"a.parquet": (REAL_DATA / row["path"]).read_bytes()})

    result = intake.drain(budget_s=100)

    assert sorted(result.judged) == sorted(f"f{i}" for i in range(190)), result
    wrong = []
    for i, row in enumerate(rows):
        verdict = verdict_of(lake, f"f{i}")
        found = codes(verdict)
        if row["expected"] == "accept" and found:
            wrong.append((row["path"], found, verdict.problems[0].message))
        if row["expected"] == "reject" and not found:
            wrong.append((row["path"], found, "accepted"))
        if not found:
            assert [facts.rows for facts in verdict.artifacts] == [int(row["rows"])], row["path"]
    assert wrong == []
