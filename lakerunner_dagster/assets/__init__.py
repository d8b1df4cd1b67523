"""Assets: what the lake holds, as Dagster shows it."""
