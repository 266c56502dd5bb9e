"""capflow-score: grades the captions of files that are there already."""
