"""`capflow status`: how far a run is, how fast, and what it costs."""
