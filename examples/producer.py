"""A Python producer: makes candles, hands them in, and prints where they lie.

python examples/producer.py [LAKE]
"""

import sys
from datetime import UTC, datetime, timedelta

import pyarrow as pa

import bus

FIRST = datetime(2026, 1, 8, tzinfo=UTC)


def candles(token: str, minutes: int = 60) -> pa.Table:
    """One row a minute."""
    moments = [FIRST + timedelta(minutes=n) for n in range(minutes)]
    closes = [100 + (n * 7) % 13 for n in range(minutes)]
    return pa.table({"ts": moments, "token": [token] * minutes, "close": closes})


def main() -> None:
    """Submit one table; wait for the receipt."""
    lake = bus.connect(sys.argv[1] if len(sys.argv) > 1 else None)
    job = lake.submit(
        candles("SOL"),
        kind="example_candles",
        producer="python-example",
        run_id="example-python",
        logical_key="token=SOL",
        meta={"interval": "1m"},
    )
    print(job.wait(60).artifacts[0].path)


if __name__ == "__main__":
    main()
