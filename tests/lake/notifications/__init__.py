"""Tests of what turns a store's events into notifications."""
