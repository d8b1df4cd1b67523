"""How the news of a raw object reaches Kafka: event formats, routing by key, and the adapters that listen."""
