"""Tests of the embedded services, against the real servers."""
