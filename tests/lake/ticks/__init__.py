"""Ticks: what Kafka brings becomes durable once, whatever is repeated, lost or killed."""
