"""One process among those that a launcher started: its place, its meeting with the others, its end."""
