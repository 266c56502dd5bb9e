"""What a worker does with a batch: stages, conversations, answers, admission, heartbeat."""
