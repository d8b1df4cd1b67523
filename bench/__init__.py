"""Measurements that print a table: ratios in one run, never timed tests."""
