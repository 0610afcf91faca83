"""Which samples exist, and whose they are."""
