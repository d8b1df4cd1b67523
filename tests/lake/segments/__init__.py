"""Tests of segments: identities, order, bytes, index."""
