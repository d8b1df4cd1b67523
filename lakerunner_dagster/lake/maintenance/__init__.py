"""Maintenance: what was missed is fetched, what has expired or was replaced goes, what is lost is told."""
