"""lrdb against a real PostgreSQL."""
