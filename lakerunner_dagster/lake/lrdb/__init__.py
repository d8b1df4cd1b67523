"""lrdb, the PostgreSQL database: the only mutable state of the lake, and the truth."""
