"""Asset checks: what must hold of an asset."""
