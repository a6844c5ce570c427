"""What handing in costs a producer, against writing the same Parquet file without a bus.

As a program: `python -m benchmarks.producers stream LAKE BYTES` submits a stream and prints by how
many MiB its process has grown; `… crowd LAKE COUNT` submits small tables when it is told to.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import inputs, lakes
from benchmarks.live import live_bus
from benchmarks.memory import resident_mib
from benchmarks.workshop import REPOSITORY
from bus import disk
from bus.client import Bus
from bus.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.rounds import Lap, Rounds
    from benchmarks.workshop import Workshop

_SMALL_JOBS = 20
_MILLION = 1_000_000
_ROW_GROUP_ROWS = 131_072
_STREAM_BYTES = 1_000_000_000
_STREAM_COLUMNS = 10
_CROWD, _CROWD_JOBS = 8, 40
_NODE_ROUNDS = 60
_NODE = REPOSITORY / "bus" / "producers" / "typescript"


def measure(shop: Workshop) -> None:
    """One small table, a million rows in four forms, a stream, a crowd, and Node."""
    _small(shop)
    _million(shop)
    _stream(shop)
    _crowd(shop)
    _typescript(shop)


def _submit(bus: Bus, data: Any) -> None:
    bus.submit(data, kind=inputs.KIND, producer=inputs.PRODUCER, required=True)


def _bus(root: Path) -> Bus:
    """A client of a lake on which no bus runs, warm."""
    bus = Bus(Settings.load(root))
    _submit(bus, inputs.mixed(0, 10))
    return bus


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(
        table,
        path,
        compression="zstd",
        write_page_checksum=True,
        row_group_size=_ROW_GROUP_ROWS,
    )


# ── one table ─────────────────────────────────────────────────────────────────────────────────


def _small(shop: Workshop) -> None:
    """`Bus.submit` of 5,000 x 10 against writing and syncing the same file."""
    tables = [inputs.mixed(10 * number) for number in range(_SMALL_JOBS)]
    sides = {
        "plain": partial(_write_each, shop, tables),
        "submit": partial(_submit_each, shop, tables),
    }
    rounds = shop.plan().run(sides)
    each_ms = {side: rounds.wall_s(side) / _SMALL_JOBS * 1000 for side in sides}
    shop.show(
        "producers.submit_5000x10",
        rounds.ratio("submit", "plain"),
        "x written, synced",
        at_most=2.5,
        rounds=rounds,
        remark=f"{each_ms['submit']:.1f} ms, {each_ms['plain']:.1f} ms",
    )


def _write_each(shop: Workshop, tables: list[pa.Table], lap: Lap) -> None:
    folder = shop.room("plain")
    with lap.measured():
        for number, table in enumerate(tables):
            path = folder / f"{number}.parquet"
            _write(table, path)
            disk.sync_file(path)


def _submit_each(shop: Workshop, tables: list[pa.Table], lap: Lap) -> None:
    bus = _bus(shop.room("submit") / "lake")
    with lap.measured():
        for table in tables:
            _submit(bus, table)


# ── a million rows ────────────────────────────────────────────────────────────────────────────


def _million(shop: Workshop) -> None:
    """From each library's own frame, durably, against `pyarrow.parquet.write_table` and no sync."""
    import duckdb  # noqa: PLC0415 - the programs below would pay for it each time
    import polars as pl  # noqa: PLC0415 - likewise

    rows = shop.size(_MILLION, 200_000)
    table = inputs.mixed(1, rows)
    held: dict[str, Any] = {
        "pyarrow": table,
        "pandas": table.to_pandas(),
        "polars": pl.DataFrame(table),
    }
    with duckdb.connect() as db:
        db.register("arrow", table)
        db.execute("CREATE TABLE held AS FROM arrow")
        frames: dict[str, Callable[[], Any]] = {name: partial(held.get, name) for name in held}
        frames["duckdb"] = partial(db.sql, "FROM held")
        sides = {name: partial(_submit_frame, shop, make) for name, make in frames.items()}
        rounds = shop.plan().run({"plain": partial(_write_one, shop, table)} | sides)
    for name in frames:
        shop.show(
            f"producers.{rows}x10_from_{name}",
            rounds.ratio(name, "plain"),
            "x write_table",
            at_most=1.3,
            rounds=rounds,
            remark=_by_cpu(rounds, name),
        )


def _by_cpu(rounds: Rounds, side: str) -> str:
    """What others do to the clock, they hardly do to this."""
    return f"{rounds.wall_s(side):.2f} s; by CPU {rounds.cpu_s(side) / rounds.cpu_s('plain'):.2f} x"


def _write_one(shop: Workshop, table: pa.Table, lap: Lap) -> None:
    path = shop.room("plain") / "table.parquet"
    with lap.measured():
        _write(table, path)


def _submit_frame(shop: Workshop, make: Callable[[], Any], lap: Lap) -> None:
    bus = _bus(shop.room("submit") / "lake")
    with lap.measured():
        _submit(bus, make())


# ── a stream ──────────────────────────────────────────────────────────────────────────────────


def _stream(shop: Workshop) -> None:
    """A RecordBatchReader of 1 GB: how much of it is in memory at once."""
    size_bytes = shop.size(_STREAM_BYTES, 300_000_000)
    grown_mib = float(_program("stream", shop.room("stream") / "lake", size_bytes))
    shop.show(
        "producers.stream_of_1gb_grows",
        grown_mib,
        "MiB resident",
        at_most=256,
        remark=f"{size_bytes / 1e9:.1f} GB",
    )


def _program(*arguments: object) -> str:
    run = subprocess.run(
        _command(*arguments), cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True
    )
    return run.stdout


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.producers", *map(str, arguments)]


def _submit_stream(root: str, size_bytes: int) -> None:
    bus = _bus(Path(root))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before_mib = resident_mib("VmRSS")
    batches = _batches(size_bytes)
    first = next(batches)
    _submit(bus, pa.RecordBatchReader.from_batches(first.schema, _again(first, batches)))
    print(resident_mib("VmHWM") - before_mib)


def _batches(size_bytes: int) -> Iterator[pa.RecordBatch]:
    names = [f"x{number}" for number in range(_STREAM_COLUMNS)]
    for start in range(0, size_bytes // (8 * _STREAM_COLUMNS), _ROW_GROUP_ROWS):
        column = pa.arange(start, start + _ROW_GROUP_ROWS)
        yield pa.record_batch([pa.concat_arrays([column]) for _ in names], names)


def _again(first: pa.RecordBatch, others: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from others


# ── many at once ──────────────────────────────────────────────────────────────────────────────


def _crowd(shop: Workshop) -> None:
    """Submissions a second of eight processes against those of one: no lock of ours is in between."""
    sides = {
        "one": partial(_submit_together, shop, 1, _CROWD_JOBS),
        "crowd": partial(_submit_together, shop, _CROWD, _CROWD_JOBS),
    }
    rounds = shop.plan(3).run(sides)
    rate = {
        side: count * _CROWD_JOBS / rounds.wall_s(side)
        for side, count in zip(sides, (1, _CROWD), strict=True)
    }
    shop.show(
        f"producers.{_CROWD}_processes",
        rate["crowd"] / rate["one"],
        "x one process",
        at_least=1.0,
        rounds=rounds,
        remark=f"{rate['crowd']:,.0f}/s, {rate['one']:,.0f}/s",
    )


def _submit_together(shop: Workshop, processes: int, count: int, lap: Lap) -> None:
    lake = lakes.new_lake(shop.room("crowd") / "lake")
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(
                subprocess.Popen(
                    _command("crowd", lake.root, count),
                    cwd=REPOSITORY,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(processes)
        ]
        _expect(crowd, "ready")
        with lap.measured():
            for each in crowd:
                assert each.stdin is not None
                each.stdin.write("go\n")
                each.stdin.flush()
            _expect(crowd, "done")
    staged = sum(1 for name in lake.inbox.iterdir() if not name.name.startswith("."))
    assert staged == processes * (count + 1), f"{staged} jobs in the inbox"


def _expect(crowd: list[subprocess.Popen[str]], word: str) -> None:
    for each in crowd:
        assert each.stdout is not None
        line = each.stdout.readline()
        assert line.strip() == word, line


def _submit_when_told(root: str, count: int) -> None:
    bus = _bus(Path(root))
    table = inputs.mixed(7)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(count):
        _submit(bus, table)
    print("done", flush=True)


# ── Node ──────────────────────────────────────────────────────────────────────────────────────


def _typescript(shop: Workshop) -> None:
    """What `submitArtifact` adds to the writing and syncing of its own files, bell included."""
    if shutil.which("node") is None or not (_NODE / "node_modules").exists():
        shop.show("producers.typescript_adds", None, "ms", remark="no Node, or not `make node`")
        return
    subprocess.run(["npm", "run", "--silent", "build"], cwd=_NODE, check=True)  # noqa: S607 - the npm of PATH
    lake = lakes.new_lake(shop.room("node") / "lake")
    command = ["node", str(Path(__file__).with_name("submit.mjs")), str(lake.root)]
    with live_bus(lake):
        done = subprocess.run(
            [*command, str(shop.size(_NODE_ROUNDS, 10))], check=True, stdout=subprocess.PIPE
        )
    found = json.loads(done.stdout)
    shop.show(
        "producers.typescript_adds",
        found["added_ms"],
        "ms",
        at_most=5,
        remark=f"{found['submit_ms']:.1f} ms, its files alone {found['plain_ms']:.1f} ms",
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stream", root, size_bytes]:
            _submit_stream(root, int(size_bytes))
        case ["crowd", root, count]:
            _submit_when_told(root, int(count))
