"""The core of a deep-learning stack made of plugin wheels. Importing it imports neither torch nor any device."""

__version__ = "0.1.0"
