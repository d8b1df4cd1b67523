"""Planners: pure functions from what waits to what shall be done; they know neither database nor clock."""
