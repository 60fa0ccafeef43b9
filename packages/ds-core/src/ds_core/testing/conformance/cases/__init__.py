"""The cases, a module a subject; each holds ``GROUPS``."""
