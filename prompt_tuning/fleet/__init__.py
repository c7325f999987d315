"""Members trained together: their state, a step of all of them, evaluation, checkpoints."""
