"""Input that means harm, or nothing, through the real path: bucket, HTTP adapter, Kafka, boxer, run, command line."""
