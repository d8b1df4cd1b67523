"""Tests; the tree mirrors the package, and ``e2e`` runs the real thing."""
