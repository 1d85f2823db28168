"""Models: families, loading, quantisation, LoRA, kernels and losses."""
