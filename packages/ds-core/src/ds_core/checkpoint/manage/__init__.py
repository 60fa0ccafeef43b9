"""Tools on folders of checkpoints: list, verify, compare, convert, tidy."""
