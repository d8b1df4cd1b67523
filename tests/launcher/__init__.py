"""Tests of the run launcher: real processes, a real code server, Dagster on PostgreSQL."""
