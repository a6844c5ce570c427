"""Seeded, realistic tables for the demo: candles with gaps, alerts, trades, metrics.

The same seed gives the same tables on every machine. Everything is computed by Arrow, column by
column.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

_START = datetime(2026, 1, 1, tzinfo=UTC)
_MINUTES_A_DAY = 1440
_GAP_SHARE = 0.03


def candles(seed: int, day: int) -> pa.Table:
    """One day of 1-minute candles: ts (instant), open, high, low, close, volume; some missing."""
    minute = _ints(_MINUTES_A_DAY)
    steps = pc.multiply(pc.subtract(_random(_MINUTES_A_DAY, seed), 0.5), 0.02)
    close = pc.exp(pc.cumulative_sum(steps))
    open_ = pc.divide(close, pc.exp(steps))
    wick = pc.multiply(_random(_MINUTES_A_DAY, seed + 1), 0.005)
    table = pa.table(
        {
            "ts": _instants(_START + timedelta(days=day), minute),
            "open": open_,
            "high": pc.multiply(pc.max_element_wise(open_, close), pc.add(wick, 1.0)),
            "low": pc.multiply(pc.min_element_wise(open_, close), pc.subtract(1.0, wick)),
            "close": close,
            "volume": pc.multiply(_random(_MINUTES_A_DAY, seed + 2), 1e6),
        }
    )
    traded = pc.greater(_random(_MINUTES_A_DAY, seed + 3), _GAP_SHARE)
    return table.filter(traded)


def alerts(seed: int, rows: int, run_id: str) -> pa.Table:
    """Standard alerts (`alerts_std`): a third by bots, some on chains that are not tradable."""
    number = _ints(rows)
    text = pc.cast(number, pa.string())
    minted = pc.greater(_random(rows, seed), 0.1)
    mint = pc.if_else(minted, _join(f"Mint{seed}x", text), None)
    evm = pc.less(_random(rows, seed + 1), 0.3)
    return pa.table(
        {
            "alert_id": _join(f"{seed}-", text),
            "alert_chat_id": _constant(rows, 1_000_000 + seed),
            "alert_message_id": number,
            "alert_ts_ms": pc.add(pc.multiply(number, 61_000), int(_START.timestamp()) * 1000),
            "alert_kind": pc.if_else(pc.less(_random(rows, seed + 2), 0.33), "bot_only", "human"),
            "mint": mint,
            "chain": pc.if_else(minted, pc.if_else(evm, "evm", "solana"), None),
            "mint_source": _constant(rows, "text"),
            "caller_raw_name": _constant(rows, f"Caller {seed}"),
            "caller_id": _constant(rows, f"c{seed}"),
            "caller_name_norm": _constant(rows, f"caller {seed}"),
            "caller_base": _constant(rows, f"caller{seed}"),
            "alert_text": _join("buy now ", text),
            "run_id": _constant(rows, run_id),
        },
    )


def trades(seed: int, rows: int, run_id: str) -> pa.Table:
    """Trades of a back-test (`bt_trades`)."""
    number = _ints(rows)
    entry_ms = pc.add(pc.multiply(number, 90_000), int(_START.timestamp()) * 1000)
    held_ms = pc.cast(pc.multiply(_random(rows, seed), 3_600_000), pa.int64(), safe=False)
    bps = pc.multiply(pc.subtract(_random(rows, seed + 1), 0.45), 2_000)
    return pa.table(
        {
            "run_id": _constant(rows, run_id),
            "call_id": _join("call-", pc.cast(number, pa.string())),
            "entry_ts_ms": entry_ms,
            "entry_px": pc.add(_random(rows, seed + 2), 0.5),
            "exit_ts_ms": pc.add(entry_ms, held_ms),
            "exit_px": pc.add(_random(rows, seed + 3), 0.5),
            "realized_return_bps": bps,
            "stop_out": pc.less(bps, -400.0),
            "max_adverse_excursion_bps": pc.multiply(_random(rows, seed + 4), -800.0),
            "time_exposed_ms": held_ms,
        }
    )


def metrics(seed: int, run_id: str) -> pa.Table:
    """Named figures of a run (`run_metrics`)."""
    names = ["sharpe", "sortino", "max_drawdown", "hit_rate", "turnover"]
    return pa.table(
        {
            "run_id": _constant(len(names), run_id),
            "metric_name": pa.array(names),
            "metric_value": _random(len(names), seed),
            "ts": pa.array([_START] * len(names), pa.timestamp("us", tz="UTC")),
        }
    )


def _ints(rows: int) -> pa.Array:
    return pa.array(range(rows), pa.int64())


def _random(rows: int, seed: int) -> pa.Array:
    return pc.random(rows, initializer=seed)


def _constant(rows: int, value: str | int) -> pa.Array:
    return pa.repeat(value, rows)


def _join(prefix: str, text: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(prefix, text, "")


def _instants(start: datetime, minute: pa.Array) -> pa.Array:
    micros = pc.add(pc.multiply(minute, 60_000_000), int(start.timestamp()) * 1_000_000)
    return micros.cast(pa.timestamp("us", tz="UTC"))
