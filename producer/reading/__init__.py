"""What users bring: plans, annotations and caption files, read as streams."""
