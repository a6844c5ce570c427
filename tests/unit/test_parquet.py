"""Foreign Parquet files: good ones stream, bad ones end in problems that a person can act on."""

from __future__ import annotations

import csv
import errno
import os
import random
import subprocess
import sys
import unicodedata
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from bus.errors import Rejected
from bus.hashing import content_hash
from bus.parquet import Limits, open_parquet, source as source_module

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.errors import Problem
    from bus.parquet import ParquetSource

REPOSITORY = Path(__file__).parents[2]
DATA = REPOSITORY.parent / "shared" / "data"
VERDICTS = DATA / "verdicts.tsv"
BOMB = "parquet/apache/large_string_map.brotli.parquet"


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True, **options)
    return bytes(sink.getvalue())


@contextmanager
def opened(path: Path, limits: Limits | None = None) -> Iterator[ParquetSource]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield open_parquet(fd, os.fstat(fd).st_size, limits, "t.parquet")
    finally:
        os.close(fd)


def read(path: Path, limits: Limits | None = None) -> pa.Table:
    with opened(path, limits) as source:
        return pa.Table.from_batches(source.batches(), source.schema)


def problems(path: Path, limits: Limits | None = None) -> list[tuple[str, str]]:
    """(code, where) of every problem of a file; none if it is read to its end."""
    try:
        read(path, limits)
    except Rejected as error:
        assert all(p.message and p.hint for p in error.problems)
        return [(str(p.code), p.where) for p in error.problems]
    return []


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def put_(content: bytes | pa.Table, **options: Any) -> Path:
        path = tmp_path / "any.parquet"
        data = parquet_bytes(content, **options) if isinstance(content, pa.Table) else content
        path.write_bytes(data)
        return path

    return put_


@pytest.fixture(params=["small", "large"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways a file is read: at once from memory, or piece by piece through its descriptor."""
    if request.param == "large":
        monkeypatch.setattr(source_module, "_SMALL_FILE_BYTES", 0)
        monkeypatch.setattr(source_module, "_SMALL_TABLE_BYTES", -1)
    return str(request.param)


def mixed(rows: int = 5) -> pa.Table:
    numbers = range(rows)
    return pa.table(
        {
            "n": pa.array([None if n % 5 == 4 else n for n in numbers], pa.int64()),
            "text": [f"row {n % 7}" for n in numbers],
            "list": [[n, None] for n in numbers],
            "at": pa.array(numbers, pa.timestamp("ms", "UTC")),
        }
    )


GOOD = parquet_bytes(mixed())


# ── good files ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("rows", [0, 1, 65_536, 65_537, 140_000])
def test_a_good_file_streams_its_rows_in_batches(put: Any, rows: int) -> None:
    table = mixed(rows)
    path = put(table, row_group_size=70_000)
    with opened(path) as source:
        assert source.num_rows_declared == rows
        batches = [*source.batches()]
        assert source.rows_read == rows
        assert all(batch.num_rows <= 65_536 for batch in batches)
        assert pa.Table.from_batches(batches, source.schema).equals(table)
        assert source.decoded_bytes == sum(batch.nbytes for batch in batches)
        assert sum(batch.num_rows for batch in source.batches()) == rows, "a second pass"


@pytest.mark.usefixtures("way")
def test_the_descriptor_is_what_is_read_and_stays_as_it_was(put: Any, tmp_path: Path) -> None:
    path = put(mixed())
    with path.open("rb") as file:
        file.seek(3)
        source = open_parquet(file.fileno(), path.stat().st_size)
        path.rename(tmp_path / "elsewhere")
        path.write_bytes(b"another file of that name")
        assert pa.Table.from_batches(source.batches()).equals(mixed())
        assert file.tell() == 3


@pytest.mark.usefixtures("way")
def test_what_arrow_wrote_beside_the_columns_changes_nothing(put: Any) -> None:
    zone = pa.timestamp("us", "America/New_York")
    table = pa.table(
        {
            "d": pa.array([1], pa.duration("ms")),
            "s": pa.array(["a"], pa.large_string()),
            "c": pa.array(["a"]).dictionary_encode(),
            "t": pa.array([0], zone),
            "u": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
            "ARROW:schema": ["a column may be called so"],
        }
    )
    path = put(table)
    assert pq.read_table(path)["d"].type == pa.duration("ms"), "pyarrow believes it"
    back = read(path)
    assert [str(field.type) for field in back.schema] == [
        *("int64", "string", "string", "timestamp[us, tz=UTC]", "fixed_size_binary[16]", "string")
    ]
    assert back["ARROW:schema"].to_pylist() == ["a column may be called so"]
    assert back.column_names == table.column_names
    assert back.schema.metadata is None


def test_int96_times_beyond_the_reach_of_nanoseconds_survive(put: Any) -> None:
    times = [datetime(9999, 12, 31), datetime(1, 1, 1)]  # noqa: DTZ001 - naive is the point
    table = pa.table({"t": pa.array(times, pa.timestamp("us"))})
    assert read(put(table, use_deprecated_int96_timestamps=True))["t"].to_pylist() == times


def test_both_ways_of_reading_give_the_same_content_hash(
    put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(mixed(3000), row_group_size=1000)
    at_once = content_hash(read(path))
    for name, value in {
        "_SMALL_FILE_BYTES": 0,
        "_SMALL_TABLE_BYTES": -1,
        "_BATCH_BYTES": 900,
    }.items():
        monkeypatch.setattr(source_module, name, value)
    with opened(path) as source:
        sizes = {batch.num_rows for batch in source.batches()}
    assert max(sizes) < 100
    assert content_hash(read(path)) == at_once


# ── files that are not what they should be ───────────────────────────────────────────────────────


def _flipped(column: int) -> bytes:
    """One bit of the only data page of a column changed; the page has a checksum."""
    chunk = pq.ParquetFile(pa.BufferReader(GOOD)).metadata.row_group(0).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(GOOD)
    data[start + chunk.total_compressed_size - 1] ^= 1
    return bytes(data)


def _encrypted(*, plaintext_footer: bool) -> bytes:
    class Plain(encryption.KmsClient):  # type: ignore[misc]  # pyarrow has no types
        def wrap_key(self, key: bytes, _master: str) -> bytes:
            return key.hex().encode()

        def unwrap_key(self, key: bytes, _master: str) -> bytes:
            return bytes.fromhex(key.decode())

    factory = encryption.CryptoFactory(lambda _: Plain())
    config = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["n"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), config)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, mixed().schema, encryption_properties=properties) as writer:
        writer.write_table(mixed())
    return bytes(sink.getvalue())


def _with_footer_length(length: int) -> bytes:
    return GOOD[:-8] + length.to_bytes(4, "little") + b"PAR1"


BROKEN: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "empty": (b"", [("E307", "t.parquet")]),
    "one byte": (b"P", [("E307", "t.parquet")]),
    "text": (b"n,text\n1,row\n" * 100, [("E307", "t.parquet")]),
    "magic only": (b"PAR1", [("E307", "t.parquet")]),
    "magic twice": (b"PAR1PAR1", [("E308", "t.parquet")]),
    "truncated": (GOOD[: len(GOOD) // 2], [("E308", "t.parquet")]),
    "without its last byte": (GOOD[:-1], [("E308", "t.parquet")]),
    "trailing bytes": (GOOD + b"\n", [("E308", "t.parquet")]),
    "footer of 0 bytes": (_with_footer_length(0), [("E308", "t.parquet")]),
    "footer of 4 GiB": (_with_footer_length(2**32 - 1), [("E308", "t.parquet")]),
    "footer of other bytes": (_with_footer_length(40), [("E308", "t.parquet")]),
    "bit flipped": (_flipped(1), [("E308", "t.parquet:text")]),
    "encrypted": (_encrypted(plaintext_footer=False), [("E309", "t.parquet")]),
    "encrypted column": (_encrypted(plaintext_footer=True), [("E309", "t.parquet")]),
    "no column": (parquet_bytes(pa.table({})), [("E312", "t.parquet")]),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_for_what_it_is(put: Any, case: str) -> None:
    data, expected = BROKEN[case]
    found = problems(put(data))
    if case == "bit flipped":  # only a small file is searched for the columns
        found = [(code, "t.parquet:text") for code, _ in found]
    assert found == expected


def test_every_broken_column_of_a_small_file_is_named(put: Any) -> None:
    twice = bytearray(_flipped(1))
    for position, (left, right) in enumerate(zip(GOOD, _flipped(0), strict=True)):
        twice[position] ^= left ^ right
    assert problems(put(bytes(twice))) == [("E308", "t.parquet:n"), ("E308", "t.parquet:text")]


@pytest.mark.usefixtures("way")
def test_text_that_is_not_utf8_is_corrupt(put: Any) -> None:
    raw = pa.array([b"fine", b"\xff\xfe"])
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    assert {code for code, _ in problems(put(pa.table({"s": text})))} == {"E308"}


def test_a_footer_that_counts_other_rows_is_a_lie(put: Any) -> None:
    with opened(put(mixed())) as source:
        source.num_rows_declared += 1
        with pytest.raises(Rejected, match="6 rows, there are 5") as caught:
            assert [*source.batches()]
    assert [str(p.code) for p in caught.value.problems] == ["E305"]


def test_hundreds_of_mutations_end_in_rows_or_in_a_problem(put: Any) -> None:
    r = random.Random(7)
    ends = set()
    for _ in range(400):
        data = bytearray(GOOD)
        start = len(GOOD) - 8 - int.from_bytes(GOOD[-8:-4], "little") if r.random() < 0.7 else 0
        for _ in range(r.choice([1, 1, 4])):
            data[r.randrange(start, len(data))] ^= 1 << r.randrange(8)
        found = problems(put(bytes(data)))
        ends.add(found[0][0] if found else "rows")
    assert ends >= {"rows", "E308"}
    assert ends <= {"rows", "E305", "E307", "E308", "E309", "E310", "E311", "E312", "E313", "E314"}


# ── limits and names ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(max_row_groups=2), "3 row groups; the limit is 2"),
        (Limits(max_columns=3), "4 columns; the limit is 3"),
        (Limits(max_footer_bytes=100), "the limit is 100"),
        (Limits(free_decoded_bytes=50, max_expansion=0), "claim to decode to"),
        (Limits(max_decoded_bytes=50), "claim to decode to"),
    ],
    ids=["row groups", "columns", "footer", "expansion", "decoded size"],
)
def test_a_limit_is_told_with_its_figure(put: Any, limits: Limits, word: str) -> None:
    with pytest.raises(Rejected, match=word) as caught:
        read(put(mixed(), row_group_size=2), limits)
    assert [str(p.code) for p in caught.value.problems] == ["E310"]


def test_the_decoded_size_may_grow_with_the_file_between_a_floor_and_a_ceiling() -> None:
    limits = Limits()
    assert limits.decoded_bytes(0) == limits.decoded_bytes(2_000_000) == 1 << 30
    assert limits.decoded_bytes(10_000_000) == 5_000_000_000
    assert limits.decoded_bytes(1 << 40) == 64 << 30


@pytest.mark.usefixtures("way")
def test_rows_that_decode_to_more_than_the_metadata_told_stop_at_the_limit(put: Any) -> None:
    table = pa.table({"s": ["long " * 2000] * 3000, "i": pa.nulls(3000, pa.int8())})
    path = put(table)
    assert path.stat().st_size < 20_000
    assert problems(path, Limits(free_decoded_bytes=1 << 20)) == [("E310", "t.parquet")]


def test_millions_of_nulls_in_a_few_bytes_are_refused_by_their_number(put: Any) -> None:
    path = put(pa.table({"i": pa.nulls(3_000_000, pa.int64())}))
    assert path.stat().st_size < 10_000
    with pytest.raises(Rejected, match="claim to decode to 24,000,000"):
        read(path, Limits(free_decoded_bytes=1 << 20))


def _nested(levels: int) -> pa.DataType:
    kind: pa.DataType = pa.int64()
    for level in range(levels):
        kind = pa.list_(kind) if level % 2 else pa.struct([("x", kind)])
    return kind


def test_sixteen_levels_of_nesting_are_read_and_seventeen_are_not(put: Any) -> None:
    assert problems(put(pa.table({"deep": pa.nulls(1, _nested(16))}))) == []
    assert problems(put(pa.table({"deep": pa.nulls(1, _nested(17))}))) == [
        ("E313", "t.parquet:deep")
    ]
    maps = pa.map_(pa.string(), _nested(14))
    assert problems(put(pa.table({"m": pa.nulls(1, maps)}))) == []


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["a", "A"], "E311"),
        (["é", unicodedata.normalize("NFD", "É")], "E311"),
        (["straße", "STRASSE"], "E311"),
        (["a\0b"], "E314"),
        (["a\x1b[2J"], "E314"),
        (["a\nb"], "E314"),
        (["x" * 1025], "E314"),
    ],
    ids=repr,
)
def test_names_that_engines_or_terminals_misread_are_refused(
    put: Any, names: list[str], code: str
) -> None:
    assert [c for c, _ in problems(put(pa.table([[1]] * len(names), names=names)))] == [code]
    struct = pa.StructArray.from_arrays([pa.array([1])] * len(names), names)
    found = problems(put(pa.table({"outer": struct})))
    assert [c for c, _ in found] == [code]
    assert all(where.startswith("t.parquet:outer") and where.isprintable() for _, where in found)


@pytest.mark.parametrize("name", ["", " ", 'a"; DROP TABLE x; --', "日本語", "🚀", "a.b", "\u200b"])
def test_odd_names_that_people_can_read_are_kept(put: Any, name: str) -> None:
    assert read(put(pa.table({name: [1]}))).column_names == [name]


def test_all_problems_of_a_footer_are_told_at_once(put: Any) -> None:
    names = ["a", "A", "b\t", "deep"]
    table = pa.table([[1], [2], [3], pa.nulls(1, _nested(17))], names=names)
    found = problems(put(table), Limits(max_columns=3))
    assert sorted(found) == [
        ("E310", "t.parquet"),
        ("E311", "t.parquet:a"),
        ("E313", "t.parquet:deep"),
        ("E314", "t.parquet:b\\t"),
    ]


# ── faults of ours ───────────────────────────────────────────────────────────────────────────────


def test_a_failing_disk_is_no_problem_of_the_file(
    put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    path = put(mixed())
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read(path)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("asked_bytes", "is_file"), [(1000, False), (1 << 20, False), (2 << 30, True)]
)
def test_memory_that_runs_out_is_the_files_fault_only_for_a_monstrous_column(
    put: Any, monkeypatch: pytest.MonkeyPatch, asked_bytes: int, *, is_file: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError(f"malloc of size {asked_bytes} failed")

    with opened(put(mixed())) as source:
        monkeypatch.setattr(pq.ParquetFile, "read", fail)
        expected: type[Exception] = Rejected if is_file else MemoryError
        with pytest.raises(expected):
            assert [*source.batches()]


# ── real files and bombs ─────────────────────────────────────────────────────────────────────────


def _verdicts() -> list[dict[str, str]]:
    if not VERDICTS.is_file():
        return []
    with VERDICTS.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file, delimiter="\t")]


@pytest.mark.needs_data
@pytest.mark.usefixtures("way")
def test_real_files_end_as_their_verdicts_say() -> None:
    wrong = []
    verdicts = _verdicts()
    assert len(verdicts) == 190
    for verdict in verdicts:
        found: tuple[Problem, ...] = ()
        shape = "", ""
        try:
            table = read(DATA / verdict["path"])
            shape = str(table.num_rows), str(table.num_columns)
        except Rejected as error:
            found = error.problems
        expected = verdict["expected"]
        as_told = expected == "either" or (shape == (verdict["rows"], verdict["columns"]))
        if (expected == "reject" and not found) or (expected == "accept" and not as_told):
            wrong.append((verdict["path"], expected, shape, found))
    assert wrong == []


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("parquet/apache/repeated_no_annotation.parquet", "E305"),
        ("parquet/apache/datapage_v1-corrupt-checksum.parquet", "E308"),
        ("parquet/apache/aes256/encrypt_columns_plaintext_footer.parquet.encrypted", "E309"),
        (BOMB, "E310"),
        ("parquet/fastparquet/no_columns.parquet", "E312"),
    ],
)
def test_real_files_have_the_code_that_says_what_is_wrong(path: str, code: str) -> None:
    assert {found for found, _ in problems(DATA / path)} == {code}


_IN_A_CHILD = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from bus.parquet import Limits
from tests.unit.test_parquet import problems
print(problems(Path(sys.argv[1]), Limits(free_decoded_bytes=int(sys.argv[3]))))
# Not ru_maxrss: that one begins with the peak of the process that forked this one.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def problems_in_a_child(path: Path, free_decoded_bytes: int = 1 << 30) -> tuple[str, int]:
    """The problems of a file, and how many MiB the child needed, of 3 GiB of addresses."""
    run = subprocess.run(
        [sys.executable, "-c", _IN_A_CHILD, str(path), str(3 << 30), str(free_decoded_bytes)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found, peak_kib = run.stdout.splitlines()
    return found, int(peak_kib) // 1024


@pytest.mark.needs_data
def test_a_decompression_bomb_is_refused_before_it_goes_off() -> None:
    found, peak_mib = problems_in_a_child(DATA / BOMB)
    assert found == "[('E310', 't.parquet')]"
    assert peak_mib < 300


def test_one_long_text_referred_to_a_million_times_is_refused_in_little_memory(
    tmp_path: Path,
) -> None:
    # The footer claims about 1 MB: the dictionary. Only what is decoded shows 300 GB.
    text = pa.DictionaryArray.from_arrays(
        pa.nulls(300_000, pa.int32()).fill_null(0), pa.array(["x" * 1_000_000])
    )
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"s": text}), path, compression="zstd", data_page_size=1 << 30)
    assert path.stat().st_size < 10_000
    found, peak_mib = problems_in_a_child(path, free_decoded_bytes=60 << 20)
    assert found == "[('E310', 't.parquet')]"
    assert peak_mib < 600
