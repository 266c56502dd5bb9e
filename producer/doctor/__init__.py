"""Check everything that a fleet needs, and name a remedy for what is wrong."""
