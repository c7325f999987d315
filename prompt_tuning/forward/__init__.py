"""One forward of rows of many members: which run together, how they are laid out, what comes out."""
