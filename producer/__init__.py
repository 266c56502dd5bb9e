"""The producer: turns split plans into chains, follows them, and writes the caption files."""
