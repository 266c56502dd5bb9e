"""capflow-plan: from a metafile to a split plan."""
