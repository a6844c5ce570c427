"""Any byte of anything that the bus keeps: flipped, it is found and named, or it is no harm.

Closed files are held against a hash, or against what the journal says they must be: there every
byte counts. SQLite's file and DuckDB's have bytes that nobody reads (counters, free room): of those
two it is shown that what was not found changed no row, no schema, no index and no writer.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from bus import checkpoints
from bus.catalog import Catalog
from bus.lake import CHECKPOINT, RECEIPT, REJECT_REASON, Lake
from bus.manifest import BrokenManifestError, Manifest
from bus.rebuilt import Twin
from bus.verify import verify
from tests.ledger import dump
from tests.pipeline import Pipeline, facts, table, verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.campaign import Campaign

PROBLEM = {"code": "E307", "where": "a.parquet", "message": "m", "hint": "h"}
#: What is flipped in a long campaign where a file is too large for all of it.
MOST = 1_000


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Three commits with everything, all views made, a checkpoint of the second and the third."""
    pipe = Pipeline(tmp_path_factory.mktemp("flips") / "lake")
    tags = {"tags": {"k": "v"}}
    pipe.stage("one", table(10), table(11), run_id="run-1", entries=tags, meta={"note": "ä"})
    pipe.run()
    pipe.stage("two", table(20), keys=["k2"], run_id="run-2", entries={"inputs": ["job:one/t0"]})
    pipe.run()
    checkpoints.make(pipe.lake)
    pipe.judged(verdict("refused", accepted=False, problems=[PROBLEM]), {})
    pipe.judged(verdict("built", facts("t0", 3)))
    with pipe.writer() as writer:
        while writer.drain().more:
            pass
    checkpoints.make(pipe.lake)
    assert problems(pipe, Catalog) == []
    return pipe


def problems(pipe: Pipeline, of: object = None) -> list[Any]:
    """Findings; the twin's catalog, which costs most of the time, is made for its own flips only."""
    with pytest.MonkeyPatch.context() as patch:
        if of is not Catalog:
            patch.setattr(Twin, "catalog_differences", lambda *_: iter(()))
        return verify(pipe.lake, pipe.settings, pipe.registry).findings


def flip(path: Path, bit: int) -> None:
    """One bit, as a disk would do it: neither mode nor times tell."""
    seen = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    path.chmod(seen.st_mode & 0o777)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def is_named(path: Path, found: list[Any]) -> bool:
    return any(str(path).startswith(finding.where) for finding in found)


def objects(lake: Lake) -> list[Path]:
    return [*lake.all_objects()]


def records(lake: Lake) -> list[Path]:
    return [lake.journal / name for name in lake.record_names()]


def checkpoint_documents(lake: Lake) -> list[Path]:
    return [*lake.checkpoints.glob(f"*/{CHECKPOINT}")]


def checkpoint_copies(lake: Lake) -> list[Path]:
    names = (lake.manifest_db.name, lake.catalog_db.name)
    return [path for name in names for path in lake.checkpoints.glob(f"*/{name}")]


def answers(lake: Lake) -> list[Path]:
    return [*lake.processed.glob(f"*/{RECEIPT}"), *lake.rejected.glob(f"*/{REJECT_REASON}")]


def documents(lake: Lake) -> list[Path]:
    return [*lake.sidecars.iterdir(), *lake.run_trees.glob("**/*.json")]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "files",
    [objects, records, checkpoint_documents, checkpoint_copies, answers, documents],
    ids=lambda files: files.__name__,
)
def test_a_flipped_byte_of_a_closed_file_is_found_and_named(
    pipe: Pipeline, campaign: Campaign, files: Callable[[Lake], list[Path]]
) -> None:
    found = sorted(files(pipe.lake))
    assert len(found) >= 2
    places = []
    for path in found:
        size = path.stat().st_size
        offsets = campaign.chance.sample(range(size), min(size, MOST))
        places += [(path, offset) for offset in offsets]
    places = campaign.some(places, 20)
    for path, offset in places:
        bit = 8 * offset + campaign.chance.randrange(8)
        flip(path, bit)
        try:
            assert is_named(path, problems(pipe)), f"bit {bit} of {path.name}"
        finally:
            flip(path, bit)
    assert problems(pipe) == []
    campaign.record(files=files.__name__, flips=len(places), found=len(places))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_flipped_byte_of_the_manifest_is_found_or_changes_nothing(
    pipe: Pipeline, campaign: Campaign, tmp_path: Path
) -> None:
    path = pipe.lake.manifest_db
    size = path.stat().st_size
    # The first page's header is where SQLite keeps what no query reads.
    offsets = [*range(100), *campaign.chance.sample(range(100, size), MOST)]
    offsets = campaign.some(offsets, 30)
    before = rows(pipe.lake)
    harmless = 0
    for offset in offsets:
        bit = 8 * offset + campaign.chance.randrange(8)
        flip(path, bit)
        try:
            if is_named(path, problems(pipe)):
                continue
            harmless += 1
            lake = Lake(tmp_path / f"{bit}", pipe.lake.root)
            lake.manifest_db.parent.mkdir(parents=True)
            shutil.copy(path, lake.manifest_db)
            assert rows(lake) == before, f"bit {bit}"
            assert is_written_on(lake), f"bit {bit}"
        finally:
            flip(path, bit)
    assert problems(pipe) == []
    campaign.record(files="manifest", flips=len(offsets), found=len(offsets) - harmless)


def rows(lake: Lake) -> Any:
    with closing(Manifest.read(lake)) as manifest:
        schema = manifest.rows("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2")
        return dump(manifest), schema


def is_written_on(lake: Lake) -> bool:
    """A writer goes on with the file, or sees what is wrong and makes another."""
    try:
        with closing(Manifest.open(lake)) as manifest:
            manifest.note_progress({"trees": 99})
            return manifest.progress("trees") == 99
    except BrokenManifestError:
        return True


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_flipped_byte_of_the_catalog_is_found_or_changes_nothing(
    pipe: Pipeline, campaign: Campaign
) -> None:
    path = pipe.lake.catalog_db
    offsets = campaign.some(campaign.chance.sample(range(path.stat().st_size), MOST // 4), 6)
    before = Catalog.digest(pipe.lake)
    harmless = 0
    for offset in offsets:
        bit = 8 * offset + campaign.chance.randrange(8)
        flip(path, bit)
        try:
            if not is_named(path, problems(pipe, Catalog)):
                assert Catalog.digest(pipe.lake) == before, f"bit {bit}"
                harmless += 1
        finally:
            flip(path, bit)
    assert problems(pipe, Catalog) == []
    campaign.record(files="catalog", flips=len(offsets), found=len(offsets) - harmless)
