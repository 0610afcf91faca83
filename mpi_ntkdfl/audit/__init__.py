"""What a curious neighbour reconstructs from the messages of a round."""
