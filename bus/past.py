"""Golden exports as things stood after an earlier commit, in a directory of the caller's.

The journal up to that commit is written down once more, in views of their own over the same objects:
so everything that an export may read, `catalog.*` as well as `canon.*`, is what it was then. What is
of today are the exports' SELECTs, the contracts of the kinds, and the bytes: an export of a kind some
of whose bytes are gone fails, and says which.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus import disk, exports
from bus.errors import Code, Refused
from bus.rebuilt import Twin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bus.lake import Lake
    from bus.manifest import Manifest
    from bus.settings import Settings
    from bus.specs import Registry

#: Views of the past lie in run/, so that links can be made; older ones are nobody's any more.
_PREFIX = "past-"
_LEFT_AFTER_S = 86_400.0
_SHOWN = 3


def export_as_of(
    lake: Lake,
    settings: Settings,
    registry: Registry,
    seq: int,
    out: Path,
    names: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Write exports as of commit `seq` to `out`, laid out as exports/ is; the status' results.

    Takes about as long as a rebuild. Raises `NotFound` for an export that is not in the settings,
    `Refused` (E103) for a directory within the lake, `Damaged` (E315) where the journal breaks.
    """
    if out.resolve().is_relative_to(lake.root):
        hint = "Name a directory of your own: what lies in a lake is the bus's."
        raise Refused(f"{out} is within the lake", code=Code.E103, where="out", hint=hint)
    wanted = exports.chosen(settings, names)
    _sweep(lake)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=lake.run) as folder:
        past = lake.beside(Path(folder), out)
        past.create()
        with closing(Twin(lake, Path(folder), past)) as twin:
            twin.grow(seq)
            gone = _link(past, twin.manifest)
            twin.publish_catalog(settings, registry)
        exports.build(past, settings, wanted, gone=gone)
        results = exports.publish_pending(past, settings)
        disk.remove_tree(past.export_builds)
    return [result for result in results if result["name"] in wanted]


def _sweep(lake: Lake) -> None:
    """Remove what was left by those that were killed."""
    for left in lake.run.glob(f"{_PREFIX}*"):
        if time.time() - left.stat().st_mtime > _LEFT_AFTER_S:
            disk.remove_tree(left)


def _link(lake: Lake, manifest: Manifest) -> dict[str, str]:
    """Make the links that `canon.*` reads; what is missing of each kind, in words."""
    missing: dict[str, list[str]] = {}
    for kind, version, artifact_id, file_hash in manifest.rows(
        "SELECT artifact_type, schema_version, artifact_id, file_hash FROM linked"
    ):
        path = lake.artifact_path(kind, version, artifact_id)
        source = lake.object_path(file_hash.removeprefix("sha256:"))
        if not source.exists():
            missing.setdefault(kind, []).append(artifact_id)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.link_or_copy(source, path)
    return {kind: _told(kind, ids) for kind, ids in missing.items()}


def _told(kind: str, ids: list[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"the bytes of these artifacts of {kind} are gone: {', '.join(ids[:_SHOWN])}{more}"
