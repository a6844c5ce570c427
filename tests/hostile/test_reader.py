"""The reader that stays (`Bus.query`): each escape again, on a connection that outlives attempts.

It attaches snapshot after snapshot under the lock, so the catalog's own path is open to it: that
nobody can use this is what is new here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import pytest

from bus.errors import Code, Refused
from bus.snapshot import Snapshots
from tests.hostile.test_sql import (
    DOING_MORE,
    LOCKED,
    READING_OUTSIDE,
    everything,
    filled,
    lake,  # noqa: F401 - a fixture
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bus.lake import Lake

#: {catalog}: the published snapshot, {manifest}: the other view.
AT_THE_CATALOG = {
    "its bytes": "SELECT * FROM read_blob('{catalog}')",
    "its text": "SELECT * FROM read_text('{catalog}')",
    "as CSV": "SELECT * FROM read_csv('{catalog}')",
    "as Parquet": "SELECT * FROM read_parquet('{catalog}')",
    "as a table": "SELECT * FROM '{catalog}'",
    "as a database": "SELECT * FROM read_duckdb('{catalog}', table_name = 'uses')",
    "attached again": "ATTACH '{catalog}' AS again",
    "attached to write": "ATTACH '{catalog}' AS again (READ_WRITE)",
    "attached in a string": "SELECT * FROM query('ATTACH ''{catalog}'' AS again')",
    "overwritten": "COPY (SELECT 1) TO '{catalog}'",
    "overwritten in a WITH": "WITH x AS (COPY (SELECT 1) TO '{catalog}') SELECT 1",
    "its log": "COPY (SELECT 1) TO '{catalog}.wal'",
    "let go": "DETACH bus",
    "let go after USE": "USE memory",
    "another lake's": "ATTACH '{outside}/other.duckdb' AS o (READ_ONLY)",
    "the manifest": "ATTACH '{manifest}' AS m (TYPE sqlite)",
    "the manifest's bytes": "SELECT * FROM read_blob('{manifest}')",
    "the journal": "SELECT * FROM read_json('{outside}/lake/bus/store/journal/*.json')",
    "the endpoint": "SELECT * FROM read_text('{outside}/lake/bus/endpoint.json')",
    "more directories": "SET allowed_directories = ['/']",
    "more paths": "SET allowed_paths = ['/etc/passwd']",
    "the lock": "SET lock_configuration = false",
}
_ATTEMPTS = {
    **READING_OUTSIDE,
    **DOING_MORE,
    **{f"the catalog: {name}": sql for name, sql in AT_THE_CATALOG.items()},
}


@pytest.fixture(scope="module")
def reader(lake: Lake) -> Iterator[Snapshots]:  # noqa: F811 - the fixture
    found = Snapshots(lake)
    yield found
    found.close()


def _filled(lake: Lake, sql: str) -> str:  # noqa: F811 - the fixture
    paths = {"{catalog}": str(lake.catalog_db), "{manifest}": str(lake.manifest_db)}
    for word, path in paths.items():
        sql = sql.replace(word, path)
    return filled(lake, sql)


@pytest.mark.parametrize("attempt", _ATTEMPTS.values(), ids=_ATTEMPTS.keys())
def test_an_attempt_is_refused_changes_nothing_and_the_next_reader_is_served(
    attempt: str,
    lake: Lake,  # noqa: F811 - the fixture
    reader: Snapshots,
) -> None:
    before = everything(lake.root.parent)
    with pytest.raises(Refused) as caught:
        reader.select(_filled(lake, attempt), timeout_s=20)

    assert caught.value.code is Code.E510
    assert everything(lake.root.parent) == before
    assert reader.select("SELECT count(*) FROM canon.things")[1] == [(3,)]


#: Under the lock alone: everything but what touches the one path that must stay open.
_BY_THE_LOCK = {
    **LOCKED,
    **{
        name: AT_THE_CATALOG[name]
        for name in (
            *("another lake's", "the manifest", "the manifest's bytes", "the journal"),
            *("the endpoint", "more directories", "more paths", "the lock", "attached again"),
            "attached to write",
        )
    },
}


@pytest.mark.parametrize("attempt", _BY_THE_LOCK.values(), ids=_BY_THE_LOCK.keys())
def test_the_lock_of_a_connection_that_attached_anew_still_holds(
    attempt: str,
    lake: Lake,  # noqa: F811 - the fixture
    reader: Snapshots,
) -> None:
    before = everything(lake.root.parent)
    with reader.newest():
        pass
    reader._shown = (*reader._shown[:1], 0, 0)  # as if another snapshot had been published
    with pytest.raises(duckdb.Error), reader.newest() as db:
        db.execute(_filled(lake, attempt)).fetchall()

    assert everything(lake.root.parent) == before
