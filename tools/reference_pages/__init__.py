"""One module per page of the generated reference; each has ``page() -> str``."""
