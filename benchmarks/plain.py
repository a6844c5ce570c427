"""The in-process limit: the checks of a validator, done by plain processes without any queue.

For each file: file hash; decode with page checksums and full validation; content hash; column
statistics; fsync of the file; a link into the target directory; fsync of that directory. These are
the functions that the bus's own workers call for the same purpose, so that the ratio says what the
*bus* costs (documents, claims, messages, journal, receipts, views) and nothing else.

As a program: `python -m benchmarks.plain TARGET` reads one JSON list of paths from its input, does
the first one without linking to be warm, says ``ready``, waits for a line, works, says ``done``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from bus.hashing import file_hash
from bus.parquet import Limits, open_parquet
from bus.table import TablePass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self


class PlainCheckers:
    """Processes that stand ready, each with its share of the files; `go` lets them work."""

    def __init__(self, files: Sequence[Path], target: Path, processes: int) -> None:
        target.mkdir(parents=True, exist_ok=True)
        self._stack = ExitStack()
        self._children = [_start(target) for _ in range(processes)]
        for child in self._children:
            self._stack.enter_context(child)
        for number, child in enumerate(self._children):
            share = [str(path) for path in files[number::processes]]
            _tell(child, json.dumps(share))
        for child in self._children:
            _expect(child, "ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            for child in self._children:
                child.kill()
        self._stack.close()

    def go(self) -> None:
        """Have all work done; returns when the last one is."""
        for child in self._children:
            _tell(child, "go")
        for child in self._children:
            _expect(child, "done")


def _start(target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.plain", str(target)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def _tell(child: subprocess.Popen[str], line: str) -> None:
    stream = cast("IO[str]", child.stdin)
    stream.write(line + "\n")
    stream.flush()


def _expect(child: subprocess.Popen[str], word: str) -> None:
    said = cast("IO[str]", child.stdout).readline().strip()
    if said != word:
        raise RuntimeError(f"a plain checker said {said!r} instead of {word!r}")


_LIMITS = Limits(max_decoded_bytes=64 << 30)

# ── the program ──────────────────────────────────────────────────────────────────────────────────


def _work(target: Path) -> None:
    paths = [Path(name) for name in json.loads(sys.stdin.readline())]
    _examine(paths[0])
    print("ready", flush=True)
    sys.stdin.readline()
    for path in paths:
        sha256 = _examine(path)
        _keep(path, target / f"{sha256}.parquet")
    print("done", flush=True)


def _examine(path: Path) -> str:
    """Every check of one file; its SHA-256."""
    fd = os.open(path, os.O_RDONLY)
    try:
        sha256 = file_hash(fd).removeprefix("sha256:")
        source = open_parquet(fd, os.fstat(fd).st_size, _LIMITS, path.name)
        table_pass = TablePass(source, path.name, None)
        facts = table_pass.run()
        content_hash = table_pass.content_hash()
    finally:
        os.close(fd)
    assert facts.rows > 0
    assert facts.column_stats
    assert content_hash is not None
    return sha256


def _keep(path: Path, final: Path) -> None:
    _sync(path, os.O_RDONLY)
    os.link(path, final)
    _sync(final.parent, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    os.fsync(fd)
    os.close(fd)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
