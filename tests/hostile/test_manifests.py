"""What hostile, careless and merely odd manifests get: a verdict that says what and where."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bus.claims import claim_path
from bus.intake import Intake
from bus.lake import COMMIT, MANIFEST
from bus.settings import Settings
from bus.specs import Registry
from tests.jobs import (
    codes,
    commit,
    judged,
    manifest_of,
    new_lake,
    put_job,
    small_table,
    verdict_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bus.lake import Lake

REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


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


def text_of(job_id: str, **fields: Any) -> str:
    return json.dumps(manifest_of(job_id, ["a0.parquet"], **fields))


# ── not strict JSON, or too much of it ────────────────────────────────────────────────────────

_GOOD = text_of("job")
BROKEN_TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "E102"),
    "truncated": (_GOOD[:-20].encode(), "E102"),
    "byte order mark": (b"\xef\xbb\xbf" + _GOOD.encode(), "E102"),
    "UTF-16": (_GOOD.encode("utf-16"), "E102"),
    "not UTF-8": (_GOOD.replace("tester", "t\udcff").encode("utf-8", "surrogateescape"), "E102"),
    "lone surrogate": (_GOOD.replace("tester", "\\ud800").encode(), "E102"),
    "repeated key": (_GOOD.replace('"version": 1', '"version": 1, "version": 1').encode(), "E102"),
    "NaN": (text_of("job", meta={"x": float("nan")}).encode(), "E102"),
    "Infinity": (text_of("job", meta={"x": float("inf")}).encode(), "E102"),
    "1e400": (text_of("job", meta={"x": 0}).replace('"x": 0', '"x": 1e400').encode(), "E102"),
    "beyond int64": (text_of("job", meta={"x": 2**63}).encode(), "E102"),
    "a list": (b"[1]", "E103"),
    "null": (b"null", "E103"),
    "over 1 MiB": (text_of("job").encode() + b" " * (1 << 20), "E107"),
    "depth 17": (
        text_of("job").replace('"version": 1', '"meta": ' + "[" * 17 + "]" * 17).encode(),
        "E107",
    ),
    "depth 100,000": (b"[" * 100_000 + b"]" * 100_000, "E107"),
    "string over 4 KiB": (text_of("job", meta={"x": "x" * 4097}).encode(), "E107"),
}


@pytest.mark.parametrize("case", BROKEN_TEXTS)
def test_a_manifest_that_is_not_acceptable_json_is_rejected(
    case: str, lake: Lake, intake: Intake
) -> None:
    data, code = BROKEN_TEXTS[case]
    put_job(lake, "job", manifest=data)

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == [code]
    assert verdict.problems[0].where.startswith(MANIFEST)
    assert verdict.submission_id is not None, "the producer that waits must be answered"


# ── fields ────────────────────────────────────────────────────────────────────────────────────


def _artifact(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["artifacts"][0].update(fields)


def _job(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.update(fields)


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.pop(name)


def _many(manifest: dict[str, Any]) -> None:
    manifest["artifacts"] *= 1001


BAD_FIELDS: dict[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {
    "rows as text": (_artifact(rows="1"), "E103", "artifacts[0].rows"),
    "rows as float": (_artifact(rows=1.0), "E103", "artifacts[0].rows"),
    "rows as bool": (_artifact(rows=True), "E103", "artifacts[0].rows"),
    "rows negative": (_artifact(rows=-1), "E103", "artifacts[0].rows"),
    "sha256 too short": (_artifact(sha256="ab12"), "E103", "artifacts[0].sha256"),
    "schema_version 0": (_artifact(schema_version=0), "E103", "artifacts[0].schema_version"),
    "unknown field": (_job(produser="x"), "E103", "produser"),
    "unknown artifact field": (_artifact(rowz=1), "E103", "artifacts[0].rowz"),
    "missing field": (_without("run_id"), "E103", "run_id"),
    "version 2": (_job(version=2), "E103", "version"),
    "no zone in the time": (_job(created_at_utc="2026-01-08T05:12:33"), "E103", "created_at_utc"),
    "format csv": (_artifact(format="csv"), "E110", "artifacts[0].format"),
    "producer with a slash": (_job(producer="a/b"), "E104", "producer"),
    "run_id of 300 characters": (_job(run_id="r" * 300), "E104", "run_id"),
    "kind empty": (_job(kind=""), "E104", "kind"),
    "artifact_id with a newline": (
        _artifact(artifact_id="a\n"),
        "E104",
        "artifacts[0].artifact_id",
    ),
    "kind of an artifact with a space": (_artifact(kind="a b"), "E104", "artifacts[0].kind"),
    "control character in a tag": (_artifact(tags={"k": "a\x07"}), "E103", "artifacts[0].tags"),
    "logical_key over 1 KiB": (
        _artifact(logical_key="k" * 1025),
        "E103",
        "artifacts[0].logical_key",
    ),
    "job_id of another directory": (_job(job_id="other"), "E106", "job_id"),
    "nothing to do": (_job(artifacts=[]), "E111", MANIFEST),
    "1,001 artifacts": (_many, "E107", "artifacts"),
    "unknown mutation": (_job(mutations=[{"op": "destroy"}]), "E103", "mutations[0]"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_bad_field_is_named(case: str, lake: Lake, intake: Intake) -> None:
    change, code, place = BAD_FIELDS[case]
    manifest = manifest_of("job", ["a0.parquet"])
    change(manifest)
    put_job(lake, "job", {"a0.parquet": small_table()}, manifest=manifest)

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == [code]
    assert place in verdict.problems[0].where


def test_an_unknown_field_names_its_nearest_neighbour(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", manifest=manifest_of("job", ["a0.parquet"], produser="x"))

    assert "'producer'" in judged(intake, lake, "job").problems[0].hint


def test_every_problem_of_every_artifact_is_reported_at_once(lake: Lake, intake: Intake) -> None:
    relpaths = ["a0.parquet", "../a1.parquet", "a2.parquet", "a3.parquet"]
    manifest = manifest_of("job", relpaths, job_id="other")
    manifest["artifacts"][0]["rows"] = 7
    manifest["artifacts"][2]["format"] = "csv"
    put_job(
        lake, "job", {"a0.parquet": small_table(), "a2.parquet": small_table()}, manifest=manifest
    )

    assert sorted(codes(judged(intake, lake, "job"))) == ["E106", "E108", "E110", "E301", "E305"]


def test_what_a_rejected_manifest_says_about_itself_is_kept(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", manifest=manifest_of("job", ["a0.parquet"], version=2))

    verdict = judged(intake, lake, "job")

    assert (verdict.run_id, verdict.producer, verdict.kind) == ("run-1", "tester", "things")


# ── relpath ───────────────────────────────────────────────────────────────────────────────────

BAD_RELPATHS = {
    "parent": "../x.parquet",
    "parent later": "a/../../b.parquet",
    "parent only": "..",
    "absolute": "/etc/passwd",
    "NUL": "a\0b.parquet",
    "backslash": "a\\b.parquet",
    "drive letter": "C:x.parquet",
    "dot": ".",
    "dot inside": "a/./b.parquet",
    "empty": "",
    "empty part": "a//b.parquet",
    "trailing slash": "a/",
    "trailing dot": "a.parquet.",
    "trailing space": "a.parquet ",
    "reserved": "CON",
    "reserved with extension": "nul.parquet",
    "nine levels": "a/" * 8 + "b.parquet",
    "space below a folder": "a/b c.parquet",
    "newline": "a\nb.parquet",
    "256 bytes": "a" * 256,
    "ours": "verdict.json",
    "ours in capitals": "Manifest.JSON",
    "ours, hidden": ".bus-old",
}


@pytest.mark.parametrize("case", BAD_RELPATHS)
def test_a_relpath_that_is_no_plain_path_is_refused(case: str, lake: Lake, intake: Intake) -> None:
    manifest = manifest_of("job", [BAD_RELPATHS[case]])
    put_job(lake, "job", {}, manifest=manifest)

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == ["E108"]
    assert verdict.problems[0].where == f"{MANIFEST}.artifacts[0].relpath"


@pytest.mark.parametrize(
    "relpath", ["a.parquet", "mint=So1/res=1m/x.parquet", "a/b/c/d/e/f/g/h.parquet", "Zürich 1.pq"]
)
def test_a_plain_relpath_is_taken(relpath: str, lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", {relpath: small_table()})

    assert codes(judged(intake, lake, "job")) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.parquet", "a.parquet"), ("a.parquet", "A.parquet"), ("\u00e9.parquet", "e\u0301.parquet")],
    ids=["same", "case", "Unicode form"],
)
def test_two_artifacts_of_one_relpath_are_refused(
    first: str, second: str, lake: Lake, intake: Intake
) -> None:
    put_job(
        lake,
        "job",
        {first: small_table(), second: small_table()},
        manifest=manifest_of("job", [first, second]),
    )

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == ["E109"]
    assert verdict.problems[0].where == f"{MANIFEST}.artifacts[1].relpath"


def test_two_artifacts_of_one_name_are_refused(lake: Lake, intake: Intake) -> None:
    manifest = manifest_of("job", ["x.parquet", "y.parquet"])
    manifest["artifacts"][0]["artifact_id"] = "Table"
    manifest["artifacts"][1]["artifact_id"] = "table"
    put_job(
        lake, "job", {"x.parquet": small_table(), "y.parquet": small_table()}, manifest=manifest
    )

    assert codes(judged(intake, lake, "job")) == ["E109"]


# ── what is accepted although it looks odd ────────────────────────────────────────────────────


def test_an_upper_case_sha256_with_or_without_prefix_is_accepted(
    lake: Lake, intake: Intake
) -> None:
    path = put_job(lake, "first")
    sha256 = judged(intake, lake, "first").artifacts[0].sha256
    assert not path.exists()
    manifest = manifest_of("second", ["a0.parquet"])
    manifest["artifacts"][0]["sha256"] = f"sha256:{sha256.upper()}"
    put_job(lake, "second", manifest=manifest)

    assert codes(judged(intake, lake, "second")) == []


def test_null_rows_and_sha256_are_computed(lake: Lake, intake: Intake) -> None:
    manifest = manifest_of("job", ["a0.parquet"])
    manifest["artifacts"][0] |= {"rows": None, "sha256": None, "schema_hint": None}
    put_job(lake, "job", manifest=manifest)

    facts = judged(intake, lake, "job").artifacts[0]

    assert facts.rows == 3
    assert len(facts.sha256) == 64


def test_files_that_nobody_listed_are_kept_and_named(lake: Lake, intake: Intake) -> None:
    files = {"a0.parquet": small_table(), "notes.txt": b"hello", "deep/er/x.bin": b""}
    put_job(lake, "job", files, manifest=manifest_of("job", ["a0.parquet"]))

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == []
    assert verdict.warnings == ["extra_files: deep/er/x.bin, notes.txt"]
    assert (lake.ready / "job" / "notes.txt").read_bytes() == b"hello"


def test_a_time_of_creation_in_the_future_is_a_warning(lake: Lake, intake: Intake) -> None:
    put_job(
        lake,
        "job",
        manifest=manifest_of("job", ["a0.parquet"], created_at_utc="2999-01-01T00:00:00Z"),
    )

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == []
    assert verdict.warnings[0].startswith("created_in_the_future")


def test_secrets_in_meta_do_not_reach_the_journal(lake: Lake, intake: Intake) -> None:
    meta = {
        "db": {"Password": "hunter2", "host": "h"},
        "urls": ["https://x.test/?token=abc"],
        "aws": "AKIAIOSFODNN7EXAMPLE",
        "token": "So11111111111111111111111111111111111111112",
    }
    put_job(lake, "job", manifest=manifest_of("job", ["a0.parquet"], meta=meta))

    verdict = judged(intake, lake, "job")

    assert "hunter2" not in verdict.model_dump_json()
    assert "abc" not in json.dumps(verdict.meta)
    assert "AKIA" not in verdict.model_dump_json()
    assert verdict.meta["db"]["host"] == "h"
    assert verdict.meta["token"] == meta["token"], "a token here is a coin, not a password"
    assert verdict.warnings == ["secrets_redacted: meta.aws, meta.db.Password, meta.urls[0]"]


# ── COMMIT ────────────────────────────────────────────────────────────────────────────────────


def test_a_marker_of_another_manifest_is_refused(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job")
    (path / MANIFEST).write_text((path / MANIFEST).read_text() + "\n")

    verdict = judged(intake, lake, "job")

    assert codes(verdict) == ["E112"]
    assert verdict.submission_id is not None


@pytest.mark.parametrize(
    "text", ["done", "{}", '{"manifest_sha256": "ab"}', "[]", "\0", "x" * 5000]
)
def test_a_commit_that_is_neither_empty_nor_a_marker_is_refused(
    text: str, lake: Lake, intake: Intake
) -> None:
    path = put_job(lake, "job", marker=False)
    (path / COMMIT).write_text(text)

    assert codes(judged(intake, lake, "job")) in (["E112"], ["E107"])


def test_a_commit_of_white_space_counts_as_empty(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job", marker=False)
    (path / COMMIT).write_text("\n")

    assert codes(judged(intake, lake, "job")) == []


def test_a_job_without_a_manifest_is_refused(lake: Lake, intake: Intake) -> None:
    path = put_job(lake, "job", marker=False)
    (path / MANIFEST).unlink()

    assert codes(judged(intake, lake, "job")) == ["E101"]


@pytest.mark.parametrize("name", [MANIFEST, COMMIT])
@pytest.mark.parametrize("what", ["link", "directory", "fifo"])
def test_documents_that_are_no_plain_files_are_not_followed(
    name: str, what: str, lake: Lake, intake: Intake, tmp_path: Path
) -> None:
    path = put_job(lake, "job", marker=False)
    (path / name).rename(tmp_path / name)
    match what:
        case "link":
            (path / name).symlink_to(tmp_path / name)
        case "directory":
            (path / name).mkdir()
        case _:
            os.mkfifo(path / name)

    assert codes(judged(intake, lake, "job")) == ["E302"]


# ── the directory's own name ──────────────────────────────────────────────────────────────────

ODD_NAMES = {
    "space": "my job",
    "leading dash": "-rf",
    "255 characters": "j" * 255,
    "129 characters": "j" * 129,
    "newline": "job\n",
    "escape": "job\x1b[2J",
    "not UTF-8": os.fsdecode(b"job\xff"),
    "emoji": "job \U0001f4a5",
}


@pytest.mark.parametrize("case", ODD_NAMES)
def test_a_directory_that_is_not_named_after_an_id_is_rejected(
    case: str, lake: Lake, intake: Intake
) -> None:
    put_job(lake, "job", directory=ODD_NAMES[case])

    result = intake.drain()

    [name] = result.judged
    verdict = verdict_of(lake, name)
    assert verdict.job_id == name
    assert sorted(codes(verdict)) == ["E104", "E106"]
    assert list(lake.inbox.iterdir()) == []
    assert list(lake.claims.iterdir()) == []


def test_an_odd_name_that_people_can_read_is_kept(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", directory="my job")

    assert intake.drain().judged == ["my job"]
    assert claim_path(lake, "my job").name != "my job"


def test_names_with_a_dot_are_nobodys_business(lake: Lake, intake: Intake) -> None:
    put_job(lake, "job", directory=".staging-abc")

    assert intake.drain(".staging-abc").judged == []
    assert (lake.inbox / ".staging-abc" / COMMIT).exists()


@pytest.mark.parametrize("name", ["../work/x", "/etc", "", "a\0b", ".", ".."])
def test_a_bell_for_something_that_is_no_name_touches_nothing(name: str, intake: Intake) -> None:
    assert intake.drain(name).judged == []


# ── a corpus of hostile JSON ──────────────────────────────────────────────────────────────────


@pytest.mark.needs_data
@pytest.mark.usefixtures("no_sync")
def test_the_json_corpus_as_manifests_ends_in_verdicts_that_name_the_text(
    lake: Lake, intake: Intake
) -> None:
    with (REAL_DATA / "json_verdicts.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    expected = {f"j{i}": row["expected"] for i, row in enumerate(rows)}
    for i, row in enumerate(rows):
        path = put_job(lake, f"j{i}", {}, manifest=b"", marker=False)
        (path / MANIFEST).write_bytes((REAL_DATA / row["path"]).read_bytes())
        commit(path)

    result = intake.drain(budget_s=60)

    assert sorted(result.judged) == sorted(expected)
    text_codes = {"E102", "E107"}
    for job_id, verdict in expected.items():
        found = set(codes(verdict_of(lake, job_id)))
        assert found, f"{job_id}: no text of the corpus is a manifest"
        if verdict == "reject":
            assert found <= text_codes, job_id
        if verdict == "accept":
            # Two of these repeat a key, which both readers take and we do not.
            assert not found & text_codes or "dup" in rows[int(job_id[1:])]["path"], job_id


@pytest.mark.needs_data
@pytest.mark.usefixtures("no_sync")
def test_naughty_strings_are_bad_ids_or_inert_ones(lake: Lake, intake: Intake) -> None:
    lists = list((REAL_DATA / "json" / "blns").glob("*.json"))
    strings = [s for path in lists for s in json.loads(path.read_text()) if isinstance(s, str)]
    assert len(strings) > 400
    manifests = [
        manifest_of(f"n{i}", ["a0.parquet"], run_id=s[:4000]) for i, s in enumerate(strings)
    ]
    for i, manifest in enumerate(manifests):
        put_job(lake, f"n{i}", {}, manifest=manifest)

    result = intake.drain(budget_s=60)

    assert len(result.judged) == len(strings)
    for i, string in enumerate(strings):
        found = codes(verdict_of(lake, f"n{i}"))
        inert = (
            string.isascii() and string[:1].isalnum() and not set(string) & set("/\\ \"'<>;$`&|\n")
        )
        assert "E104" in found or inert, string
