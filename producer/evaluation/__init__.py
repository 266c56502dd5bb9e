"""What workflows, models, prompts and earlier runs are worth on the user's own samples, side by side."""
