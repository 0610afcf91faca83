"""What clients say to each other: exchange, neighbourhoods, waves. Above transport, below methods."""
