"""The real thing, end to end: services, Dagster processes, a browser."""
