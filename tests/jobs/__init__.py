"""The jobs, run by Dagster on a real lake."""
