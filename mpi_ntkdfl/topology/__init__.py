"""Who talks to whom each round, and which rank owns whom. No MPI."""
