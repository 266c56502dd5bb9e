"""Metric definitions, logs, probe pages."""
