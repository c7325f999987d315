"""Tensors and ranks: the grid, its collectives and random numbers that no topology changes."""
