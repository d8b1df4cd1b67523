"""A real Apache Kafka for the tests: one node, from Maven Central, where java and mvn are there."""
