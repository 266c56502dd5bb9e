"""Fuzzing of everything that reads a user's file; see readers.py."""
