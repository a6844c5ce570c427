"""The reading half of `Bus`: find artifacts, look into the past, follow what changes, ask in SQL.

Reads the manifest and the published catalog, which the writer never locks; needs no running bus.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from bus.errors import Code, NotFound, Refused
from bus.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from bus.artifact import Artifact, Artifacts, Status
    from bus.changes import Change
    from bus.finding import Then
    from bus.moments import AsOf, Moment
    from bus.settings import Settings
    from bus.snapshot import Snapshots


class Reader:
    """One lake, for reading.

    Everywhere `as_of` asks how things stood then: after a commit, named by its number, or at a
    moment (a datetime with a zone, or such text). Asking about a commit that is not there raises
    `NotFound` (E511), a moment without a zone `Refused` (E103), a manifest that cannot be read
    `Unavailable` (E508, E512).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lake = Lake(settings.lake, settings.public_lake)

    @cached_property
    def _snapshots(self) -> Snapshots:
        from bus.snapshot import Snapshots  # noqa: PLC0415 - brings duckdb; producers need it not

        return Snapshots(self.lake)

    def _then(self, as_of: AsOf = None) -> AbstractContextManager[Then]:
        from bus.finding import Then  # noqa: PLC0415 - brings sqlite3; producers need it not

        return Then.of(self.lake, as_of)

    def find(  # noqa: PLR0913 - a filter each
        self,
        *,
        kind: str | None = None,
        logical_key: str | None = None,
        tags: Mapping[str, str | Sequence[str]] | None = None,
        run_id: str | None = None,
        producer: str | None = None,
        status: Status | None = "active",
        since: Moment | None = None,
        until: Moment | None = None,
        as_of: AsOf = None,
        limit: int | None = None,
    ) -> Artifacts:
        """Artifacts that fit every filter, the newest first.

        `tags`: all of them, and of a list of values all. `run_id`, `producer`: somebody delivered
        it so. `status`: None takes those too that were superseded, tombstoned, damaged or purged.
        `since`, `until`: some of its rows may lie in since <= time < until, by the kind's time column.
        `limit`: the newest so many; default: all.
        """
        from bus.artifact import Artifacts  # noqa: PLC0415 - as in `_then`

        with self._then(as_of) as then:
            found = then.find(
                kind=kind,
                logical_key=logical_key,
                tags=tags,
                run_id=run_id,
                producer=producer,
                status=status,
                since=since,
                until=until,
                limit=limit,
            )
        return Artifacts(found)

    def get(self, ref: str, *, as_of: AsOf = None) -> Artifact:
        """The artifact that a reference means: an artifact_id or its beginning, ``KIND:ALIAS``
        (``KIND:latest`` always works), ``KIND@VERSION/BEGINNING``, ``RUN/NAME`` or
        ``job:JOB/NAME``. Whatever its status.

        Raises `NotFound` (E511), naming what is near, and `Refused` (E404), listing what it may be.
        """  # noqa: D205 - the forms of a reference are the first thing to know
        from bus import references  # noqa: PLC0415 - as in `_then`

        with self._then(as_of) as then:
            if found := then.by_id([references.artifact_id(then, ref)]):
                return found[0]
        raise NotFound(f"{ref[:160]!r} is no longer in this lake", where="REF")

    def latest(
        self, kind: str, *, producer: str | None = None, name: str | None = None, as_of: AsOf = None
    ) -> Artifact:
        """The active artifact of a kind that was delivered last, by that producer, under that name.

        Delivered, not made: a run that comes to the same table as an earlier one makes that the
        latest. Raises `NotFound` (E511) when there is none.
        """
        with self._then(as_of) as then:
            if (found := then.latest(kind, producer, name)) is not None:
                return found
        asked = {"producer": producer, "name": name}
        said = "".join(f", {what} {value!r}" for what, value in asked.items() if value is not None)
        raise NotFound(f"no active artifact of kind {kind!r}{said}", hint="See `bus find`.")

    def exists(
        self,
        file_hash: str | None = None,
        *,
        kind: str | None = None,
        schema_version: int = 1,
        logical_key: str | None = None,
        content_hash: str | None = None,
    ) -> bool:
        """Whether these bytes, or this table of this kind under this key, need not be made again.

        By `file_hash`: an artifact stands on these bytes. By the other four: submitting it would add
        nothing. What was tombstoned or damaged does not count. Raises `Refused` (E103) for anything
        between the two.
        """
        with self._then() as then:
            if file_hash is not None and (kind, logical_key, content_hash) == (None, None, None):
                return then.holds_file(file_hash)
            if file_hash is None and kind and logical_key and content_hash:
                return then.holds(kind, schema_version, logical_key, content_hash)
        message = "name either a file_hash, or kind, logical_key and content_hash"
        raise Refused(message, code=Code.E103, where="exists", hint="See help(Bus.exists).")

    def change_feed(
        self, since: int = 0, *, kind: str | None = None, follow: bool = False
    ) -> Iterator[Change]:
        """What commits after `since` changed, fact by fact, in order.

        To go on later, remember the `seq` of the last commit that was taken in whole. `follow` goes on
        for ever: new commits come within a fifth of a second.
        """
        from bus.changes import changes  # noqa: PLC0415 - as in `_then`

        return changes(self.lake, since, kind=kind, follow=follow)

    def query(self, sql: str, limit: int | None = None) -> list[dict[str, Any]]:
        """One SELECT over the published catalog (`catalog.*`, `canon.*`): a dict for each row.

        Raises `Refused` (E510) for anything but reading, `Unavailable` (E508) without a catalog.
        """
        columns, rows = self._snapshots.select(sql, limit)
        return [dict(zip(columns, row, strict=True)) for row in rows]
