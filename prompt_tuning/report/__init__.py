"""What a run leaves behind for people: metrics, results, progress."""
