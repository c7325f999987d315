"""The user's own data, one file a kind: ``Options`` (its settings) and ``build(options) -> Task``."""
