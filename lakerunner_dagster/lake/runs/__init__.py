"""What a run does: drain the boxes that wait for a partition, or rebuild its day from the raw objects."""
