"""Artifacts as readers hold them: facts as they stood at one commit, and the tables themselves.

A table is read from the immutable object. One that is gone, or is not what was committed, is an
error that names the artifact, never a table with fewer rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from bus.errors import BusError, Code, Damaged, NotFound, Refused
from bus.model import iso
from bus.shown import facts_html, rows_html

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    import pandas as pd
    import polars as pl
    import pyarrow as pa

#: Whether to start from an artifact: it holds; something replaced it; it was withdrawn; its bytes
#: are gone or changed; they were given up on purpose.
Status = Literal["active", "superseded", "tombstoned", "damaged", "purged"]

_SHOWN_ROWS = 50
_SHOWN_COLUMNS = ("artifact_id", "kind", "logical_key", "status", "rows", "created_at", "tags")


class Readable:
    """What can be read as one table: an artifact, or several that were found together.

    Every method raises `Damaged` (E315) when an object is missing or has not the bytes that were
    committed.
    """

    __slots__ = ()

    def _parts(self) -> Sequence[Artifact]:
        raise NotImplementedError

    def arrow(self) -> pa.Table:
        """The rows as a pyarrow Table.

        Of several artifacts one after the other, in the listed order; a column that some lack is NULL
        there. Raises `NotFound` (E511) when there is none, `Refused` (E203) when their columns do
        not fit together.
        """
        import pyarrow as pa  # noqa: PLC0415 - looking things up needs it not

        tables = [part._table() for part in _some(self._parts())]  # noqa: SLF001 - its own kind
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            message = f"the tables have columns that do not fit together: {error}"
            raise Refused(message, code=Code.E203, hint="Read them one by one.") from None

    def df(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame; as `arrow`."""
        return self.arrow().to_pandas()

    def pl(self) -> pl.DataFrame:
        """The rows as a polars DataFrame; as `arrow`."""
        from bus.frames import as_polars  # noqa: PLC0415 - looking things up needs no frames

        return as_polars(self.arrow())

    def sql(self, query: str) -> pa.Table:
        """One SELECT by DuckDB over exactly these rows, the table `this`: ``SELECT … FROM this``.

        Nothing else can be read, no other file and no setting. Columns that no query names are not
        decoded. Raises `NotFound` (E511) when there is none, `Refused` (E510) for anything but
        reading and for bad SQL.
        """
        from bus.snapshot import select_from_files  # noqa: PLC0415 - brings duckdb

        parts = _some(self._parts())
        for part in parts:
            part.check()
        files = dict.fromkeys(part._place for part in parts)  # noqa: SLF001 - its own kind
        try:
            return select_from_files([*files], query)
        except Refused:
            for part in parts:
                part.check(deep=True)
            raise


@dataclass(frozen=True, slots=True, repr=False)
class Artifact(Readable):
    """One immutable table and what was known of it at one commit.

    artifact_id     the global id: same kind, version, key and rows, same id, everywhere
    logical_key     what it is about
    status          at that commit: active, superseded, tombstoned, damaged or purged
    path            its Parquet file, absolute, as readers see the lake
    sidecar         a JSON file that tells where it comes from
    file_hash       ``sha256:`` of that file
    content_hash    of the rows, whoever wrote them and in whatever order
    min_ts, max_ts  the first and last moment in the kind's time column, where it has one
    created_at      when it was committed; `seq`: by which commit
    tags            ``{key: [value, …]}``, sorted
    """

    artifact_id: str
    kind: str
    schema_version: int
    logical_key: str
    status: Status
    path: str
    sidecar: str
    file_hash: str
    content_hash: str
    rows: int
    size_bytes: int
    min_ts: datetime | None
    max_ts: datetime | None
    created_at: datetime
    seq: int
    tags: Mapping[str, list[str]] = field(hash=False)
    #: The same file, as this process sees the lake. (A text: making 100,000 paths takes seconds.)
    _place: str = field(compare=False)

    def __repr__(self) -> str:
        return f"<Artifact {self.artifact_id} {self._title}, {self.status}, {self.rows:,} rows>"

    def _repr_html_(self) -> str:
        facts = {name: value for name, value in self.as_dict().items() if name != "tags"}
        tags = [f"{key}={value}" for key, values in self.tags.items() for value in values]
        return facts_html(f"artifact {self._title}", facts | {"tags": tags})

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: moments as ISO 8601 text in UTC."""
        facts = {name: value for name, value in asdict(self).items() if name != "_place"}
        for name in ("min_ts", "max_ts", "created_at"):
            facts[name] = None if facts[name] is None else iso(facts[name])
        return facts

    @property
    def _title(self) -> str:
        return f"{self.kind} v{self.schema_version} {self.logical_key}"

    def _parts(self) -> Sequence[Artifact]:
        return (self,)

    def check(self, *, deep: bool = False) -> None:
        """Raise `Damaged` (E315) when the object is missing or has another length.

        `deep`: read it all, and compare its hash.
        """
        try:
            size_bytes = Path(self._place).stat().st_size
        except FileNotFoundError:
            given_up = self.status == "purged"
            what = "its bytes were given up by `bus gc`" if given_up else "its object is missing"
            raise self._damaged(what) from None
        if size_bytes != self.size_bytes:
            raise self._damaged(f"its object has {size_bytes:,} bytes, not {self.size_bytes:,}")
        if deep:
            from bus.hashing import file_hash  # noqa: PLC0415 - brings pyarrow

            if (found := file_hash(Path(self._place))) != self.file_hash:
                raise self._damaged(f"the bytes of its object are {found}, not {self.file_hash}")

    def _table(self) -> pa.Table:
        import pyarrow as pa  # noqa: PLC0415 - as in `arrow`
        import pyarrow.parquet as pq  # noqa: PLC0415 - likewise

        self.check()
        try:
            with pq.ParquetFile(self._place, page_checksum_verification=True) as file:
                return file.read()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(f"its object cannot be read: {error}") from None

    def _damaged(self, what: str) -> BusError:
        hint = "See `bus verify`; submit the same rows again, or restore the object from a backup."
        return Damaged(f"{self._title} ({self.artifact_id}): {what}", where=self.path, hint=hint)


class Artifacts(Sequence[Artifact], Readable):
    """Artifacts that were found together, newest first: a sequence, and one table."""

    def __init__(self, found: Sequence[Artifact]) -> None:
        self._found = tuple(found)

    @overload
    def __getitem__(self, index: int) -> Artifact: ...

    @overload
    def __getitem__(self, index: slice) -> Artifacts: ...

    def __getitem__(self, index: int | slice) -> Artifact | Artifacts:
        chosen = self._found[index]
        return Artifacts(chosen) if isinstance(chosen, tuple) else chosen

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Artifact]:
        return iter(self._found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._found == tuple(other)

    def __hash__(self) -> int:
        return hash(self._found)

    def __repr__(self) -> str:
        return f"Artifacts({list(self._found)!r})"

    def _repr_html_(self) -> str:
        rows = ([part.as_dict()[name] for name in _SHOWN_COLUMNS] for part in self[:_SHOWN_ROWS])
        more = f"<p>{_SHOWN_ROWS} of {len(self):,}</p>" if len(self) > _SHOWN_ROWS else ""
        return f"<div>{rows_html(_SHOWN_COLUMNS, rows)}{more}</div>"

    def _parts(self) -> Sequence[Artifact]:
        return self._found


def _some(parts: Sequence[Artifact]) -> Sequence[Artifact]:
    if not parts:
        raise NotFound(
            "nothing was found, so there is no table",
            hint="Look at the kind and the tags; ask for less at once.",
        )
    return parts
