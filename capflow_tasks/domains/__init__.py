"""Domains as data: the packaged YAML files, and what reads, checks and fills them."""
