"""Sweeps: many runs under one name, and what is known of each. No torch at module level anywhere in here."""
