"""Real servers of other people that tests start on loopback: object stores and queues of the clouds."""
