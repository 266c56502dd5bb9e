"""capflow-filter: parts a folder of captions into kept and rejected."""
