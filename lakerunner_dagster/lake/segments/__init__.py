"""Arrow rows → one immutable Parquet segment and its index row."""
