"""Loading a checkpoint into an engine."""
