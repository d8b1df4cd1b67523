"""Tests of the lake library."""
