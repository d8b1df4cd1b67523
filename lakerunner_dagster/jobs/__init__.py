"""Jobs: what runs are made of."""
