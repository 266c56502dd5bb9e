"""What happens to a batch: stages, conversations, answers, admission, heartbeat."""
