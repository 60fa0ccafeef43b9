"""Intel Gaudi as a device of ds-core."""

__version__ = "0.1.0"
