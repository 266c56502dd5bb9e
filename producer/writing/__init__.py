"""What users get: caption files, whole or not at all."""
