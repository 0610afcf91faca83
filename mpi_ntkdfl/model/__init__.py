"""The network as a function of a flat parameter vector."""
