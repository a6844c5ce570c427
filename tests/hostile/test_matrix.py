"""Parquet files that are legal and monstrous, or lie beside the data; and names meant to do harm.

What is merely broken is in `test_files` and `test_fuzz`, what manifests may not say in
`test_manifests`.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
import unicodedata
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bus import exports, lookup
from bus.attempt import Limits, run_limited
from bus.catalog import select
from bus.errors import MAX_PROBLEMS, Unavailable
from bus.intake import Intake
from bus.model import JobState, Verdict
from bus.settings import ExportSettings, Settings
from bus.specs import Registry
from bus.sqltypes import quoted
from bus.validation import judge_in_child
from bus.verify import verify
from tests.jobs import (
    codes,
    judged,
    manifest_of,
    new_lake,
    parquet_bytes,
    put_job,
    small_table,
)
from tests.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bus.lake import Lake
    from tests.campaign import Campaign


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path)


@pytest.fixture
def intake(lake: Lake) -> Intake:
    settings = Settings(lake=lake.root, quiet_s=0.0, incomplete_after_s=0.001)
    return Intake(lake, settings, Registry.built_in())


# ── monsters ──────────────────────────────────────────────────────────────────────────────────


def _metadata_of_50_mb(_: Campaign) -> bytes:
    return _with_metadata(pa.table({"n": [1]}), {"x": b"y" * (50 << 20)})


def _row_groups(_: Campaign) -> bytes:
    return _plain(pa.table({"n": range(10_001)}), row_group_size=1, write_statistics=False)


def _columns(_: Campaign) -> bytes:
    return _plain(pa.table({f"c{i}": [i] for i in range(5_001)}), write_statistics=False)


def _zeros(campaign: Campaign) -> bytes:
    """Honest, and 128 or 512 MB when decoded."""
    values = pa.py_buffer(bytes(64 << 20))
    zeros = pa.table({"n": pa.Array.from_buffers(pa.int64(), 8 << 20, [None, values])})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, zeros.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(campaign.size(short=2, long=8)):
            writer.write_table(zeros)
    return bytes(sink.getvalue())


def _long_text_many_times(_: Campaign) -> bytes:
    """A dictionary of one long text: 4 GB by 4,000 references, about 1 MB by the footer's word."""
    indices = pa.nulls(4_000, pa.int32()).fill_null(0)
    text = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 1_000_000]))
    return _plain(pa.table({"s": text}), data_page_size=1 << 30)


def _lists_in_lists(_: Campaign) -> bytes:
    kind: pa.DataType = pa.int8()
    for _level in range(17):
        kind = pa.list_(kind)
    return _plain(pa.table({"deep": pa.nulls(1000, kind)}))


def _plain(table: pa.Table, **options: Any) -> bytes:
    return parquet_bytes(table, **({"compression": "zstd", "store_schema": False} | options))


def _with_metadata(table: pa.Table, metadata: dict[str, bytes]) -> bytes:
    """A file whose footer says this beside its columns, and nothing else."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    return bytes(sink.getvalue())


#: (the file, the codes it may end with: none is acceptance)
MONSTERS: dict[str, tuple[Callable[[Campaign], bytes], list[str]]] = {
    "50 MB of metadata": (_metadata_of_50_mb, ["E310"]),
    "10,001 row groups": (_row_groups, ["E310"]),
    "5,001 columns": (_columns, ["E310"]),
    "zeros in a few KB": (_zeros, []),
    "4 GB by one long text": (_long_text_many_times, ["E310"]),
    "lists in lists, 17 deep": (_lists_in_lists, ["E313"]),
}


@pytest.mark.parametrize("case", MONSTERS)
def test_a_monstrous_file_is_judged_in_two_gigabytes_and_little_time(
    case: str, lake: Lake, campaign: Campaign
) -> None:
    make, expected = MONSTERS[case]
    most_bytes = campaign.size(short=256 << 20, long=64 << 30)
    settings = Settings(lake=lake.root, quiet_s=0.0, max_decoded_bytes=most_bytes)
    put_job(lake, "job", {"a.parquet": make(campaign)}).rename(lake.work / "job")

    def work(_: Callable[[str], None]) -> bytes:
        judgement = judge_in_child(lake.work / "job", lake, settings, Registry.built_in())
        return judgement.verdict.to_bytes()

    started_s = time.monotonic()
    limits = Limits(settings.validator_memory_bytes, wall_s=60.0, file_bytes=1 << 30)
    verdict = Verdict.from_bytes(run_limited(work, limits))

    assert codes(verdict) == expected
    assert time.monotonic() - started_s < 60


def test_a_manifest_full_of_faults_costs_little_and_the_journal_less(
    lake: Lake, intake: Intake
) -> None:
    many = {f"artefact{i}": 0 for i in range(50_000)}
    put_job(lake, "job", manifest=manifest_of("job", ["a0.parquet"]) | many)
    started_s = time.monotonic()

    verdict = judged(intake, lake, "job")

    assert time.monotonic() - started_s < 10
    assert len(codes(verdict)) == MAX_PROBLEMS + 1
    assert verdict.problems[-1].message == "there are more than 1,000 problems"
    assert len(verdict.to_bytes()) < 1 << 20


def test_thousands_of_bad_columns_in_many_files_are_not_all_told(
    lake: Lake, intake: Intake
) -> None:
    bad = pa.table({f"c\x07{i}": [1] for i in range(600)})
    put_job(lake, "job", {f"a{i}.parquet": bad for i in range(4)})

    verdict = judged(intake, lake, "job")

    assert len(codes(verdict)) == MAX_PROBLEMS + 1
    assert {p.where.split(":")[0] for p in verdict.problems[:-1]} == {"a0.parquet", "a1.parquet"}


# ── what stands beside the columns ────────────────────────────────────────────────────────────


class _Payload:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._path),))


def test_a_pickle_in_the_arrow_schema_is_not_executed(
    lake: Lake, intake: Intake, tmp_path: Path
) -> None:
    field = pa.field(
        "n",
        pa.int64(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(_Payload(tmp_path / "executed")),
        },
    )
    table = pa.table([pa.array([1, 2])], schema=pa.schema([field]))
    put_job(lake, "job", {"a.parquet": parquet_bytes(table)})

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == []
    assert [(c["name"], c["type"]) for c in _columns_of(verdict)] == [("n", "int64")]
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(_Payload(tmp_path / "executed")))  # noqa: S301 - the payload is real
    assert (tmp_path / "executed").is_dir()


def _columns_of(verdict: Verdict) -> list[dict[str, Any]]:
    found: Any = verdict.artifacts[0].columns
    return list(json.loads(found) if isinstance(found, str) else found)


_OTHER_SCHEMA = pa.schema(
    [("n", pa.list_(pa.int64(), 1_000_000_000)), ("text", pa.duration("s")), ("z", pa.int8())]
)
LIES_BESIDE: dict[str, dict[str, bytes]] = {
    "garbage for an Arrow schema": {"ARROW:schema": b"\xff" * 100},
    "no base64": {"ARROW:schema": b"!!!"},
    "another Arrow schema": {"ARROW:schema": base64.b64encode(_OTHER_SCHEMA.serialize())},
    "pandas metadata with code": {"pandas": b'{"index_columns": ["__import__(\'os\').abort()"]}'},
    "geo metadata without anything": {"geo": b"{}"},
    "geo metadata that is no JSON": {"geo": b"\0\1\2"},
    "geo metadata about columns of text": {
        "geo": json.dumps(
            {
                "version": "1.0.0",
                "primary_column": "text",
                "columns": {n: {"encoding": "WKB", "geometry_types": []} for n in ("n", "text")},
            }
        ).encode()
    },
}


@pytest.mark.parametrize("case", LIES_BESIDE)
def test_what_a_footer_says_beside_its_columns_changes_nothing_for_anybody(
    case: str, tmp_path: Path
) -> None:
    bus = Pipeline(tmp_path / "lake")
    put_job(bus.lake, "lies", {"a0.parquet": _with_metadata(small_table(3), LIES_BESIDE[case])})
    put_job(bus.lake, "good", {"a0.parquet": small_table(3, 10)})
    put_job(bus.lake, "same", {"a0.parquet": small_table(3)}, manifest=_of_key("same", "other"))
    bus.run()

    assert {bus.state(job_id) for job_id in ("lies", "good", "same")} == {JobState.COMMITTED}
    # One hash for the same rows, and a view that nobody's metadata stops.
    hashes = [bus.receipt(job_id).artifacts[0].content_hash for job_id in ("lies", "same")]
    assert len(set(hashes)) == 1
    rows = bus_query(bus, "SELECT n, text FROM canon.things ORDER BY n")
    assert rows == sorted(
        [(i, f"row {i}") for i in (0, 1, 2)] * 2 + [(i, f"row {i}") for i in (10, 11, 12)]
    )


def _of_key(job_id: str, key: str) -> dict[str, Any]:
    manifest = manifest_of(job_id, ["a0.parquet"])
    manifest["artifacts"][0]["logical_key"] = key
    return manifest


def bus_query(bus: Pipeline, sql: str) -> list[tuple[Any, ...]]:
    return select(bus.lake, bus.settings, sql)[1]


# ── names ─────────────────────────────────────────────────────────────────────────────────────

#: What people put into names to see what happens. Not two may be equal but for case.
NAUGHTY = (
    *("", " ", "  leading", "trailing  ", "undefined", "NULL", "None", "NaN", "true", "-1", "1e9"),
    *(
        "'",
        '"',
        '""',
        "''",
        "`",
        ";",
        "--",
        "/*",
        "*/",
        "\\",
        "\\\\",
        "%",
        "%s%n%x",
        "%00",
        "$1",
        "?",
    ),
    *('"; DROP TABLE canon.things; --', "') OR 1=1 --", "x' UNION SELECT 1 --", "$(id)", "`id`"),
    *(
        "../../etc/passwd",
        "/",
        "//",
        ".",
        "..",
        "C:\\con",
        "nul",
        "~root",
        "a/b",
        "a=b",
        "a[1]",
        "*",
    ),
    *("[[]", "{x,y}", "<script>alert(1)</script>", "&lt;", "{{7*7}}", "${jndi:ldap://x}", "#REF!"),
    *("=1+1", "@SUM(A1)", "+1", "rowid", "filename", "file_row_number", "artifact_id", "select"),
    *(
        "\u202etxt",
        "\u200b",
        "\ufeff",
        "\ufdfd",
        "e\u0301tude",
        "\u212b",
        "\U0001f4a5",
        "ﬀ",
        "İ",
        "ß",
    ),
    *("田中さん", "مرحبا", "Ω≈ç√", "x" * 1000, "a.b.c", "a:b", "a,b", "a b", "\u2028", "\xa0", "ﾟ"),
)


def test_naughty_strings_are_column_names_tags_and_keys_like_any_other(tmp_path: Path) -> None:
    bus = Pipeline(tmp_path / "lake")
    columns = [name for name in NAUGHTY if name]
    table = pa.table([pa.array([i]) for i in range(len(columns))], names=columns)
    tags = {"all": [text for text in NAUGHTY if text.isprintable()]}
    staged = bus.stage(
        "job", table, keys=['"; DROP TABLE jobs; -- *?[1]\u202e'], entries={"tags": tags}
    )
    bus.run()

    assert bus.state(staged.job_id) is JobState.COMMITTED, bus.codes("job")
    assert verify(bus.lake, bus.settings, bus.registry).findings == []
    every = ", ".join(quoted(name) for name in reversed(columns))
    (row,) = bus_query(bus, f"SELECT {every} FROM canon.signals")
    assert row == tuple(reversed(range(len(columns))))
    found = bus_query(bus, "SELECT v FROM catalog.tags_f ORDER BY v")
    assert {text for (text,) in found} == {_nfc(text) for text in tags["all"]}


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


IDS = ("a=b", "k@x", "A+B~2", "x.parquet", "con", "null", "select", "-".join("x" * 40), "0", "a..b")


@pytest.mark.parametrize("root", ["la[k]e *", 'it\'s "one"', "{a,b} %20 $x", "Zürich\u202e"])
def test_odd_ids_in_an_odd_place_are_found_again_by_everybody(root: str, tmp_path: Path) -> None:
    bus = Pipeline(tmp_path / root)
    # What a path taken for a pattern would find instead.
    other = Pipeline(tmp_path / "lake a")
    other.stage("decoy", pa.table({"n": [666]}), kind="a=b")
    other.run()
    for number, name in enumerate(IDS):
        bus.stage(f"job-{name}", pa.table({"n": [number]}), kind=name, run_id=name, producer=name)
    bus.settings = bus.settings.model_copy(
        update={"exports": _exports(f'SELECT n FROM canon."{IDS[0]}"')}
    )
    bus.run()
    exports.build(bus.lake, bus.settings, ("mine",))
    exports.publish_pending(bus.lake, bus.settings)

    for number, name in enumerate(IDS):
        assert bus_query(bus, f"FROM canon.{quoted(name)}") == [(number,)]
        (use,) = lookup.uses(bus.lake, run_id=name)
        path = bus.receipt(f"job-{name}").artifacts[0].path
        assert pq.read_table(path)["n"].to_pylist() == [number]
        assert use["name"] == "t0"
    assert pq.read_table(bus.lake.export_path("mine"))["n"].to_pylist() == [0]
    assert verify(bus.lake, bus.settings, bus.registry).findings == []


def test_a_lake_under_a_question_mark_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"\?"):
        Pipeline(tmp_path / "really?")
    assert list(tmp_path.iterdir()) == []


def _exports(sql: str) -> dict[str, Any]:
    return {"mine": ExportSettings(sql=sql)}
