"""Everything embedded: PostgreSQL, Kafka, a bucket and demo traffic, for development on one machine."""
