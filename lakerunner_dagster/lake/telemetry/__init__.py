"""Raw OpenTelemetry bytes → Arrow tables in the columns of a segment: decode, normalise, fingerprint, sketch."""
