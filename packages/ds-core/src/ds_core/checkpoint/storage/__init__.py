"""The format: names, durable writes, the manifest, and readers of its files."""
