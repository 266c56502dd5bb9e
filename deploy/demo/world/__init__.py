"""A synthetic world of pictures and videos whose truth is known, and the model that learns to see it."""
