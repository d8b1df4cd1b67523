"""Tests of the Dagster instance: storage, launcher and run lanes."""
