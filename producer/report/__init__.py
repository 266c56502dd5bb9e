"""capflow-report: a folder of static pages to look at captions with."""
