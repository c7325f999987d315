"""Fixed tasks, one file each, with a ``TASK``."""
