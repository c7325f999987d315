"""Many runs: planned, dispatched, and found again in their folders."""
