"""Records to batches: formats (files), encode (tokens and labels), batch (tensors and order)."""
