"""Pictures, and what pictures and videos share: where they lie, what they cost, how they reach the engine."""
