"""Captions per hour on one GPU, with a model of true size and random weights."""
