"""Where a run's backbone fits and what its steps take there, counted before a weight is read.

``outline.py`` has the run without its weights, ``count.py`` what one placement takes, ``choose.py`` which to take.
"""
