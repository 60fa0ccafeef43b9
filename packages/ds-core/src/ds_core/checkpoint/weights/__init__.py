"""Weights alone: whole, in the formats other programs load."""
