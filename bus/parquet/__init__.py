"""Foreign Parquet files: opened without trust, checked to the last page, streamed.

`open_parquet` looks at a file as a stranger's: it checks length and magic by itself, takes the
footer only up to a limit, and reports every problem that the metadata shows at once. What it
returns, a `ParquetSource`, reads every page with its checksum verified and every value validated.

The schema is the one of the Parquet columns. ``ARROW:schema``, the copy of an Arrow schema that
writers put beside it, is not looked at: it could turn integers into durations or name a time zone,
and then two files with the same columns would hold different values. See `footer`.
"""

from bus.parquet.footer import Limits
from bus.parquet.source import ParquetSource, is_odd, open_parquet

__all__ = ["Limits", "ParquetSource", "is_odd", "open_parquet"]
