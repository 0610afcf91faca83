"""Kinds of networks: for each its settings and how it is built. Nothing here imports torch."""
