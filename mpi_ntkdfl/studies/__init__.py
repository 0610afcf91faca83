"""Studies: named grids of runs that can be interrupted and continued, with tables and figures."""
