"""The tour: `bus demo`, which `make demo` runs. A real bus, real tables, and every claim checked.

Each act does something to the bus through its public face (the client, the command line, signals)
and returns what it claims; a claim is a sentence with its evidence and whether it held. The tour
ends with exit code 0 only if all of them did.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bus import disk
from bus.broker import endpoint
from bus.catalog import Catalog
from bus.client import connect
from bus.demo import tables
from bus.errors import Problem, Rejected, Unavailable
from bus.health import status
from bus.manifest import Manifest
from bus.model import Outcome
from bus.specs import Registry
from bus.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bus.client import Job

_TOKENS = ("SOL", "WIF", "BONK", "JUP", "PYTH", "JTO", "RAY", "ORCA", "HNT", "RNDR")
_DAYS = 12
_CALLERS = 20
_RUNS = 30
_BURST = 150
_WAIT_S = 60.0
_MARK = ".bus-demo"


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, what shows it, and whether it is true."""

    text: str
    evidence: str
    holds: bool


class Tour:
    """One run of the demo over a lake of its own, which it may delete."""

    def __init__(self, root: Path, seed: int, console: Console) -> None:
        self._root = root
        self._seed = seed
        self._say = console
        self._claims: list[Claim] = []
        self._rows: Counter[str] = Counter()
        self._jobs: list[Job] = []
        self._artifacts = 0

    def run(self) -> list[Claim]:
        """All acts, in order."""
        self._fresh_lake()
        with self._running_bus():
            self._bus = connect(self._root)
            self._ingest()
            self._read()
            self._duplicate()
            self._corrupt()
            self._kill_writer()
            self._delete_views()
            self._check_everything()
        return self._claims

    # ── the stage ─────────────────────────────────────────────────────────────────────────────

    def _fresh_lake(self) -> None:
        if self._root.exists():
            if not (self._root / _MARK).exists():
                raise Unavailable(
                    f"{self._root} exists and is not a demo lake",
                    where=str(self._root),
                    hint="Give another directory: bus demo --lake DIR.",
                )
            disk.remove_tree(self._root)
        self._root.mkdir(parents=True)
        disk.write_plain(self._root / _MARK, b"")

    @contextmanager
    def _running_bus(self) -> Iterator[None]:
        """`bus up` as a process of its own, stopped as Ctrl-C would."""
        self._title("bus up", f"a bundled Valkey, two validators, one writer, in {self._root}")
        command = [sys.executable, "-m", "bus", "up", "--lake", str(self._root), "--workers", "2"]
        log = (self._root / "bus-up.log").open("wb")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("BUS_")}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=clean)  # noqa: S603 - our own command
        try:
            self._wait("the bus to come up", lambda: self._is_up(process))
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(_WAIT_S)
            log.close()
        self._claim("the bus stops cleanly", f"exit code {code}", holds=code == 0)

    def _is_up(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            text = (self._root / "bus-up.log").read_text(errors="replace")
            raise Unavailable(f"bus up ended with {process.returncode}: {text[-2000:]}")
        settings = connect(self._root).settings
        lake = connect(self._root).lake
        return endpoint(lake) is not None and status(lake, settings).writer.state == "alive"

    # ── the acts ──────────────────────────────────────────────────────────────────────────────

    def _ingest(self) -> None:
        """Four producers hand in some hundreds of tables; the real queue takes them."""
        self._title("four producers", "candles with gaps, alerts, trades, metrics")
        started_s = time.monotonic()
        steps = len(_TOKENS) + _CALLERS + _RUNS
        with Progress(console=self._say, transient=True) as bar:
            task = bar.add_task("staging", total=steps)
            for number, token in enumerate(_TOKENS):
                self._submit_candles(number, token)
                bar.advance(task)
            for caller in range(_CALLERS):
                table = tables.alerts(self._seed + caller, 400, run_id=f"ingest-{caller}")
                self._submit("alerts_std", "ingestion", f"ingest-{caller}", {"alerts": table})
                bar.advance(task)
            for run in range(_RUNS):
                self._submit_backtest(run)
                bar.advance(task)
            self._await_all(bar)
        took_s = time.monotonic() - started_s
        count = self._count("SELECT count(*) FROM catalog.artifacts_f")
        self._claim(
            f"{len(self._jobs)} jobs with {self._artifacts} artifacts are catalogued",
            f"{count} rows in catalog.artifacts_f, {took_s:.1f} s",
            holds=count == self._artifacts,
        )

    def _submit_candles(self, number: int, token: str) -> None:
        for day in range(_DAYS):
            table = tables.candles(self._seed + 100 * number + 7 * day, day)
            key = f"token={token}/res=1m/day={day}"
            self._submit(
                "ohlcv_slice", "candles", f"candles-{token}", {f"d{day}": table}, logical_key=key
            )

    def _submit_backtest(self, run: int) -> None:
        run_id = f"backtest-{run}"
        with self._bus.job(kind="bt_trades", producer="backtest", run_id=run_id) as job:
            trades = tables.trades(self._seed + run, 300, run_id)
            job.add(trades, name="trades", inputs=[])
            job.add(tables.metrics(self._seed + run, run_id), name="metrics", kind="run_metrics")
        self._note(job.job, {"bt_trades": 300, "run_metrics": 5})

    def _submit(
        self, kind: str, producer: str, run_id: str, named: dict[str, pa.Table], **fields: Any
    ) -> None:
        for name, table in named.items():
            job = self._bus.submit(
                table, kind=kind, producer=producer, run_id=run_id, name=name, **fields
            )
            self._note(job, {kind: table.num_rows})

    def _note(self, job: Job, rows: dict[str, int]) -> None:
        self._jobs.append(job)
        self._artifacts += len(rows)
        self._rows.update(rows)

    def _await_all(self, bar: Progress) -> None:
        task = bar.add_task("committing", total=len(self._jobs))
        for job in self._jobs:
            job.wait(_WAIT_S)
            bar.advance(task)
        self._settled()

    def _read(self) -> None:
        """What readers get: the catalog, and a golden export that is plain Parquet."""
        self._title("readers", "DuckDB catalog and golden exports; no lock is ever met")
        kinds = sorted(self._rows)
        found = {kind: self._count(f'SELECT count(*) FROM canon."{kind}"') for kind in kinds}  # noqa: S608 - kinds of our own
        for kind in kinds:
            self._say.print(f"  canon.{kind}: {found[kind]:,} rows")
        self._claim(
            "every row handed in can be queried",
            f"{sum(found.values()):,} rows in {len(kinds)} kinds",
            holds=found == dict(self._rows),
        )
        path = self._bus.lake.export_path("alerts_std")
        want = self._rows["alerts_std"]
        other = self._bus.lake.export_path("alerts_std_tradable")
        self._wait(
            "the exports to be fresh", lambda: _rows_of(path) == want and 0 < _rows_of(other) < want
        )
        tradable = _rows_of(other)
        self._claim(
            "exports/alerts_std.parquet is fresh",
            f"{_rows_of(path):,} rows, {tradable:,} of them tradable",
            holds=_rows_of(path) == want and 0 < tradable < want,
        )

    def _duplicate(self) -> None:
        """The same candles, shuffled and rewritten by another run, are recognised."""
        self._title("a duplicate", "the same rows in another order, under another run")
        table = tables.candles(self._seed, 0)
        order = pa.compute.sort_indices(table["volume"])
        path = self._root / "shuffled.parquet"
        pq.write_table(table.take(order), path, write_page_checksum=True)
        job = self._bus.submit(
            path,
            kind="ohlcv_slice",
            producer="candles",
            run_id="another-run",
            logical_key=f"token={_TOKENS[0]}/res=1m/day=0",
        )
        receipt = job.wait(_WAIT_S)
        artifact = receipt.artifacts[0]
        first = self._jobs[0].wait(_WAIT_S).artifacts[0]
        self._artifacts += 1
        self._jobs.append(job)
        same = artifact.artifact_id == first.artifact_id
        self._claim(
            "a duplicate is recognised by its content",
            f"mode {artifact.mode}, {'the same' if same else 'another'} artifact_id",
            holds=same and artifact.deduped and artifact.mode == "content_hash",
        )

    def _corrupt(self) -> None:
        """A file damaged after it was hashed is refused, with reasons, and kept."""
        self._title("a corrupted file", "one byte flipped on its way")
        path = self._root / "damaged.parquet"
        pq.write_table(tables.candles(self._seed + 1, 1), path, write_page_checksum=True)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        disk.write_plain(path, bytes(data))
        job = self._bus.submit(path, kind="ohlcv_slice", producer="candles", run_id="damaged")
        problems: tuple[Problem, ...] = ()
        try:
            job.wait(_WAIT_S)
        except Rejected as rejected:
            problems = rejected.problems
            for found in problems:
                self._say.print(f"  {found.code} {found.where}: {found.message}")
                self._say.print(f"       → {found.hint}")
        kept = list((self._bus.lake.rejected / job.job_id).glob("*.parquet"))
        self._claim(
            "a corrupted file is rejected with its reason, and kept",
            ", ".join(sorted({str(p.code) for p in problems})) or "accepted",
            holds=bool(problems) and len(kept) == 1,
        )

    def _kill_writer(self) -> None:
        """The writer is killed in the middle of a burst: nothing lost, nothing doubled."""
        self._title("kill -9", "the writer dies in mid-batch; the supervisor starts another")
        lake = self._bus.lake
        before = endpoint(lake)
        victim = before.processes["writer"] if before else 0
        burst = [self._burst_job(number) for number in range(_BURST // 2)]
        unanswered = sum(job.answer() is None for job in burst)
        os.kill(victim, signal.SIGKILL)
        burst += [self._burst_job(number) for number in range(_BURST // 2, _BURST)]
        self._say.print(
            f"  writer {victim} killed with {unanswered} jobs unanswered; "
            f"{_BURST // 2} more came while there was none"
        )
        ids = [job.wait(_WAIT_S).artifacts[0].artifact_id for job in burst]
        after = endpoint(self._bus.lake)
        self._settled()
        with closing(Manifest.read(lake)) as manifest:
            times = manifest.rows(
                "SELECT job_id, count(*) FROM jobs "
                "WHERE run_id = 'burst' AND outcome = ? GROUP BY job_id",
                (str(Outcome.COMMITTED),),
            )
        once = len(times) == _BURST and all(count == 1 for _, count in times)
        restarted = before is not None and after is not None and after.processes["writer"] != victim
        self._claim(
            "kill -9 of the writer loses and doubles nothing",
            f"{unanswered} jobs were in flight; {len(set(ids))} artifacts, each once",
            holds=once and restarted and len(set(ids)) == _BURST and unanswered > 0,
        )

    def _burst_job(self, number: int) -> Job:
        table = tables.metrics(self._seed + 1000 + number, f"burst-{number}")
        job = self._bus.submit(
            table, kind="run_metrics", producer="optimizer", run_id="burst", name=f"m{number}"
        )
        self._note(job, {"run_metrics": table.num_rows})
        return job

    def _delete_views(self) -> None:
        """The catalog and the manifest are deleted; a rebuild brings back the same."""
        self._title("bus rebuild", "catalog and manifest deleted, made again from the journal")
        lake = self._bus.lake
        digest = Catalog.digest(lake)
        Manifest.delete(lake)
        disk.remove(lake.catalog_db)
        started_s = time.monotonic()
        done = self._command("rebuild")
        took_s = time.monotonic() - started_s
        again = Catalog.digest(lake)
        self._claim(
            "views can be deleted and rebuilt to the same digest",
            f"{digest[:12]} = {again[:12]}, {took_s:.1f} s",
            holds=done == 0 and digest == again,
        )

    def _check_everything(self) -> None:
        """`bus verify`: every invariant, every byte."""
        self._title("bus verify", "every invariant, every object hashed again")
        settings = self._bus.settings
        report = verify(self._bus.lake, settings, Registry.load(settings), "full")
        for finding in report.findings:
            self._say.print(f"  {finding}")
        self._claim(
            "verification finds nothing wrong",
            f"{report.objects:,} objects, {report.seq:,} commits",
            holds=not report.findings,
        )

    # ── small things ──────────────────────────────────────────────────────────────────────────

    def _command(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "bus", *arguments, "--lake", str(self._root)]
        return subprocess.run(command, check=False, capture_output=True, timeout=_WAIT_S).returncode  # noqa: S603 - our own command

    def _count(self, sql: str) -> int:
        row = self._bus.query(sql)[0]
        return int(next(iter(row.values())))

    def _settled(self) -> None:
        """Wait until the published catalog has caught up with the last commit."""

        def caught_up() -> bool:
            found = status(self._bus.lake, self._bus.settings)
            return found.catalog.seq == found.catalog.manifest_seq

        self._wait("the catalog to catch up", caught_up)

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise Unavailable(f"waited {_WAIT_S:g} s for {what}")
            time.sleep(0.05)

    def _title(self, name: str, text: str) -> None:
        self._say.print(f"\n[bold]{name}[/bold] — {text}")

    def _claim(self, text: str, evidence: str, *, holds: bool) -> None:
        self._claims.append(Claim(text, evidence, holds))
        mark = "[green]✓[/green]" if holds else "[red]✗[/red]"
        self._say.print(f"  {mark} {text}: {evidence}")


def _rows_of(path: Path) -> int:
    return int(pq.ParquetFile(path).metadata.num_rows) if path.exists() else -1


def run(root: Path, *, seed: int = 7, as_json: bool = False) -> int:
    """Run the tour in `root` (made anew); 0 when every claim held, 1 otherwise."""
    console = Console(stderr=True) if as_json else Console()
    started_s = time.monotonic()
    claims = Tour(root.resolve(), seed, console).run()
    took_s = time.monotonic() - started_s
    held = sum(claim.holds for claim in claims)
    if as_json:
        shown = [{"claim": c.text, "evidence": c.evidence, "ok": c.holds} for c in claims]
        sys.stdout.write(json.dumps(shown) + "\n")
    else:
        table = Table("claim", "evidence", "", title="what was shown")
        for claim in claims:
            table.add_row(claim.text, claim.evidence, "✓" if claim.holds else "✗ FAILED")
        console.print(table)
        console.print(f"{held} of {len(claims)} claims held, {took_s:.0f} s")
    return 0 if held == len(claims) else 1
