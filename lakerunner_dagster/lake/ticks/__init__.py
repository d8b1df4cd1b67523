"""What a sensor does at each tick: Kafka is heard, lrdb remembers, work is closed into boxes or given out."""
