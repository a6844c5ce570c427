"""The built-in contracts: the kinds whose columns the source documents list.

Only what is certain is demanded: a column is NULL-free, or a key unique, where a row without it
means nothing. Run ids and ingestion times stay out of the hash where the same rows, ingested again
under another run, are still the same table.
"""

from __future__ import annotations

from bus.columns import Column
from bus.contract import Check, Spec

_TS = "timestamp[us, UTC]"


def _columns(unhashed: tuple[str, ...] = (), /, **types: str) -> tuple[Column, ...]:
    return tuple(Column.parse(n, t, hashed=n not in unhashed) for n, t in types.items())


_ALERTS = (
    Spec(
        kind="alerts_std",
        columns=_columns(
            ("run_id", "ingested_at"),
            alert_id="string!",
            alert_chat_id="int64",
            alert_message_id="int64",
            alert_ts_ms="int64!",
            alert_kind="string",
            mint="string",
            chain="string",
            mint_source="string",
            caller_raw_name="string",
            caller_id="string",
            caller_name_norm="string",
            caller_base="string",
            alert_text="string",
            run_id="string",
            ingested_at=_TS + "?",
        ),
        sort_by=("alert_ts_ms", "alert_id"),
        key=("alert_id",),
        row_key="alert_id",
        time_column="alert_ts_ms",
        checks=(
            Check("alert_kind", "alert_kind in ('human', 'bot_only')"),
            Check("chain", "chain in ('solana', 'evm')"),
        ),
        description="Standard alerts: one row for each call, whoever made it.",
    ),
    Spec(
        kind="callers_d",
        columns=_columns(
            caller_id="string!",
            caller_raw_name="string",
            caller_name_norm="string",
            caller_base="string",
        ),
        sort_by=("caller_id",),
        key=("caller_id",),
        row_key="caller_id",
        description="Callers: one row for each caller_id that alerts name.",
    ),
    Spec(
        kind="alerts_v1",
        columns=_columns(
            ("run_id",),
            alert_ts_utc=_TS + "!",
            chain="string",
            mint="string",
            alert_chat_id="int64",
            alert_message_id="int64",
            alert_id="string!",
            caller_name_norm="string",
            caller_id="string",
            mint_source="string",
            bot_name="string",
            run_id="string",
        ),
        sort_by=("alert_ts_utc", "chain", "mint", "alert_chat_id", "alert_message_id"),
        time_column="alert_ts_utc",
        description="Normalised alerts of one export or one day.",
    ),
    Spec(
        kind="alerts",
        columns=_columns(
            alert_ts=_TS + "!",
            source="string",
            message_id="int64",
            token_mint="string",  # noqa: S106 - a mint is an address
            raw_text="string",
        ),
        sort_by=("alert_ts", "source", "message_id", "token_mint"),
        time_column="alert_ts",
        description="Alerts as their source wrote them.",
    ),
)


def _candles(version: int) -> Spec:
    return Spec(
        kind="ohlcv_slice",
        version=version,
        columns=_columns(
            ts=_TS + "!",
            open="float64",
            high="float64",
            low="float64",
            close="float64",
            volume="float64",
        ),
        sort_by=("ts",),
        time_column="ts",
        checks=(
            Check("high_low", "high >= low"),
            Check("volume_not_negative", "volume >= 0"),
        ),
        description="Candles of one token and resolution; ts is the candle's open.",
    )


_MARKET = (
    _candles(1),
    _candles(2),  # the documents publish slices as version 2, with the same columns
    Spec(
        kind="run_metrics",
        columns=_columns(run_id="string!", metric_name="string!", metric_value="float64", ts=_TS),
        sort_by=("run_id", "metric_name", "ts"),
        time_column="ts",
        description="Named figures of runs.",
    ),
)

_BACKTEST = (
    Spec(
        kind="bt_alerts",
        columns=_columns(
            call_id="string!",
            mint="string",
            caller_name="string",
            chain="string",
            alert_ts_ms="int64!",
            created_at=_TS,
        ),
        sort_by=("alert_ts_ms", "call_id"),
        key=("call_id",),
        time_column="alert_ts_ms",
        description="The calls a back-test starts from.",
    ),
    Spec(
        kind="bt_paths",
        columns=_columns(
            run_id="string!",
            call_id="string!",
            caller_name="string",
            mint="string",
            chain="string",
            interval="string",
            alert_ts_ms="int64!",
            p0="float64",
            hit_2x="bool",
            hit_3x="bool",
            hit_4x="bool",
            t_2x_ms="int64",
            t_3x_ms="int64",
            t_4x_ms="int64",
            dd_bps="float64",
            dd_to_2x_bps="float64",
            alert_to_activity_ms="int64",
            peak_multiple="float64",
        ),
        sort_by=("alert_ts_ms", "call_id"),
        time_column="alert_ts_ms",
        derived=True,
        description="What the price did after each call: multiples, drawdowns, times.",
    ),
    Spec(
        kind="bt_features",
        columns=_columns(run_id="string!", call_id="string!"),
        sort_by=("call_id",),
        derived=True,
        extensible=True,
        description="One column for each feature beside run_id and call_id.",
    ),
    Spec(
        kind="bt_trades",
        columns=_columns(
            run_id="string!",
            policy_id="string?",
            call_id="string!",
            entry_ts_ms="int64!",
            entry_px="float64",
            exit_ts_ms="int64",
            exit_px="float64",
            exit_reason="string?",
            realized_return_bps="float64",
            stop_out="bool",
            max_adverse_excursion_bps="float64",
            time_exposed_ms="int64",
            tail_capture="float64?",
        ),
        sort_by=("entry_ts_ms", "call_id"),
        time_column="entry_ts_ms",
        checks=(Check("exit_after_entry", "exit_ts_ms >= entry_ts_ms"),),
        derived=True,
        description="Trades a policy made.",
    ),
    Spec(
        kind="bt_summary",
        columns=_columns(
            run_id="string!",
            calls_processed="int64!",
            calls_excluded="int64!",
            trades_count="int64!",
            avg_return_bps="float64",
            median_return_bps="float64",
            p25_return_bps="float64",
            p75_return_bps="float64",
            p90_return_bps="float64",
            stop_out_rate="float64",
            avg_max_adverse_excursion_bps="float64",
            avg_time_exposed_ms="float64",
            median_time_exposed_ms="float64",
            avg_tail_capture="float64",
            median_tail_capture="float64",
        ),
        checks=(
            Check(
                "counts_not_negative",
                "calls_processed >= 0 and calls_excluded >= 0 and trades_count >= 0",
            ),
            Check("rate", "stop_out_rate between 0 and 1"),
        ),
        rows=1,
        derived=True,
        description="One row: the figures of a whole run.",
    ),
    Spec(
        kind="bt_frontier",
        columns=_columns(
            run_id="string!",
            caller_name="string",
            policy_params="string",
            meets_constraints="bool",
            objective_score="float64",
            avg_return_bps="float64",
            median_return_bps="float64",
            stop_out_rate="float64",
            rank="int64?",
        ),
        sort_by=("caller_name", "policy_params"),
        derived=True,
        description="Policies an optimiser tried; policy_params is JSON.",
    ),
    Spec(
        kind="bt_errors",
        columns=_columns(
            run_id="string!",
            timestamp=_TS + "!",
            level="string!",
            phase="string!",
            call_id="string?",
            message="string!",
            details="string?",
        ),
        sort_by=("timestamp",),
        time_column="timestamp",
        checks=(
            Check("level", "level in ('error', 'warning', 'info')"),
            Check("phase", "phase in ('plan', 'coverage', 'slice', 'execution', 'optimization')"),
        ),
        description="What went wrong in a run; details is JSON.",
    ),
)

_EXPERIMENTS = (
    Spec(
        kind="experiment_trades",
        columns=_columns(
            experiment_id="string!",
            alert_id="string",
            trade_id="string!",
            entry_ts=_TS + "!",
            exit_ts=_TS,
            entry_price="float64",
            exit_price="float64",
            pnl="float64",
            pnl_pct="float64",
            duration_ms="int64",
        ),
        sort_by=("entry_ts", "trade_id"),
        key=("experiment_id", "trade_id"),
        time_column="entry_ts",
        checks=(Check("exit_after_entry", "exit_ts >= entry_ts"),),
        derived=True,
        description="Trades of an experiment.",
    ),
    Spec(
        kind="experiment_metrics",
        columns=_columns(
            experiment_id="string!",
            metric_name="string!",
            metric_value="float64",
            metric_unit="string",
            computed_at=_TS,
        ),
        sort_by=("experiment_id", "metric_name"),
        time_column="computed_at",
        derived=True,
        description="Named figures of an experiment.",
    ),
    Spec(
        kind="experiment_equity_curve",
        columns=_columns(
            experiment_id="string!",
            ts=_TS + "!",
            equity="float64",
            drawdown="float64",
            drawdown_pct="float64",
        ),
        sort_by=("experiment_id", "ts"),
        time_column="ts",
        derived=True,
        description="Equity over time.",
    ),
    Spec(
        kind="experiment_diagnostics",
        columns=_columns(
            experiment_id="string!",
            stage="string",
            key="string!",
            value_num="float64",
            value_text="string",
            severity="string",
            ts=_TS,
        ),
        sort_by=("experiment_id", "stage", "key"),
        time_column="ts",
        derived=True,
        description="Remarks an experiment left about itself.",
    ),
)

#: Kinds the documents name without columns: anything goes until someone declares a contract.
OPEN_KINDS = (
    "alerts_analysis",
    "alerts_event_v1",
    "events",
    "features",
    "fills",
    "metrics",
    "ohlcv_slice_v2",
    "positions",
    "slice",
    "trades",
)

BUILT_IN: tuple[Spec, ...] = (*_ALERTS, *_MARKET, *_BACKTEST, *_EXPERIMENTS)
