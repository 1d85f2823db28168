"""Model families: those of transformers, and published ones that are converted."""
