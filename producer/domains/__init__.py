"""capflow-domains: what the domain files say, and what the model gets."""
