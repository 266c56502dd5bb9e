"""Scores the captions of files that exist already."""
