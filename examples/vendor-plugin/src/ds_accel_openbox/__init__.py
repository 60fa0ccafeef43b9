"""A torch device that is not the CPU and needs no hardware. Importing it changes nothing."""

__version__ = "0.1.0"
