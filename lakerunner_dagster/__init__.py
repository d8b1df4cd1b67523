"""The OpenTelemetry lake as a Dagster asset graph. This file stays free of side effects."""
