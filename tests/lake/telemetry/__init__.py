"""Tests of decoding: fast equals plain, and bad input is set aside alone."""
