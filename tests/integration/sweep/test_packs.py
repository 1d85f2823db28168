"""Jobs that share a process in the pool: spread, places, failures, signals, and the death of the process."""
