"""The run file: its schema, how files and overrides are laid over one another, and what makes two runs the same. No torch."""
