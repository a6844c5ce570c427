"""Artifact Bus: an artifact store and ingest bus for quantitative research."""
