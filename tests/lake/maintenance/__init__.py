"""Maintenance on a real lake: what goes, what stays, and what is told."""
