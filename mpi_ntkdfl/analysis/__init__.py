"""Reads records and makes tables and figures of them; knows neither MPI nor torch."""
