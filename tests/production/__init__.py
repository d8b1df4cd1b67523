"""The platform as docs/operations.md and docs/deployment.md run it: each process by itself, under a supervisor."""
