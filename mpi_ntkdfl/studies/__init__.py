"""Studies: named grids of runs, done where they stopped, ending in tables and figures."""
