"""What all assets of the lake have in common.

What belongs here: owners. What does not: anything of one asset.
"""

OWNERS = ["team:telemetry"]
"""Whom Dagster shows as owner of every asset."""
