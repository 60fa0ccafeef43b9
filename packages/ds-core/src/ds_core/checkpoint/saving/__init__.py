"""Saving an engine: a copy in host memory, written and committed in the background."""
