"""Vulkan devices for ds-core. Importing it changes nothing."""

__version__ = "0.1.0"
