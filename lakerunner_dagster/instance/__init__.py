"""What dagster.yaml names: how this Dagster instance stores and queues its runs."""
