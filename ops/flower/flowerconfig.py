"""Flower's settings: `bus flower` reads them with ``--conf``; FLOWER_* variables give the secrets.

Flower shows Celery's view: the queues `ingest` and `writer` (it takes the names from the Celery
app's `task_queues` when no worker is alive), tasks and their run times. It cannot show what lies in
the inbox, messages not yet acknowledged, or how old anything is: `bus status` does.

Set FLOWER_BASIC_AUTH=user:password. /metrics and /healthcheck stay open by Flower's own design,
so keep the port off public networks.
"""

from __future__ import annotations

# Look, do not touch: restarting pools and revoking tasks belong to `bus`.
read_only = True

# The inspection of a busy writer may take longer than Flower's default of one second.
inspect_timeout = 3000.0

# Doorbells are many and small; a few thousand are enough to see what happened lately.
max_tasks = 5000
max_workers = 200
# Ingest workers come and go with scaling; forget one after an hour.
purge_offline_workers = 3600

tasks_columns = "name,state,args,received,started,runtime,worker,exception"
natural_time = False
