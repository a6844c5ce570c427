"""Adapters from the outside world to `bus.client.Bus`: each turns what somebody has into jobs.

`files`: Parquet files on disk, as the command line and scripts hand them in. `csv_files`: CSV, typed
by the contract. `artifact_store`: the calls of the documents' library of that name.
"""
