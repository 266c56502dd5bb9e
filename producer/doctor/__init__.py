"""The command capflow-doctor: looks at everything a fleet needs, and says what mends it."""
