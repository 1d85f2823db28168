"""Models: load (checkpoint or random weights, quantised or not), and the embedded ``tiny``."""
