"""Many runs: their folders, their scheduling, and the search."""
