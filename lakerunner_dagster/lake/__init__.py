"""The domain, as a pure library: nothing below this package imports Dagster."""
