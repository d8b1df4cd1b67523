"""Tests of the Dagster instance: storage and run lanes."""
