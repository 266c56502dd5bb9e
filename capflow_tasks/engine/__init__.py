"""Engines that answer requests, behind one interface; vLLM is imported when its engine is built."""
