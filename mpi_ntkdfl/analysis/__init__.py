"""Reads records and makes tables and figures from them. It imports neither MPI nor torch."""
