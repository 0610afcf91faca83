"""Reads records and makes tables of them; knows neither MPI nor torch."""
