"""Sensors: what wakes the lake."""
