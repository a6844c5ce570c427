"""Celery's tasks, and the pump: each a few lines over the core.

``ingest``: `submit_artifact`, `verify_sample`, `sweep`. ``writer``: `commit_ready`,
`refresh_exports`, `publish_export`. None of them carries data: a message says only "look".
"""
