"""Tasks: what is asked of which rows, one file each."""
