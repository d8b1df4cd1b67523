"""Runs: claimed boxes and rebuilt days, on a real lrdb, Kafka and bucket, also while they are killed."""
