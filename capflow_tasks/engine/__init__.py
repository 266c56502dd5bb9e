"""What answers requests. Stages see the interface only; vLLM is imported when an engine is built."""
