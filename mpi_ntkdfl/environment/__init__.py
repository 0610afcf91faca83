"""Simulated time: how long a federation would take, and who takes part. No ranks, no wall clock."""
