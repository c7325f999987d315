"""A run file for data that nobody has trained on: what lies there, what it is for, and which settings it asks for."""
