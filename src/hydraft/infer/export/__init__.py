"""mode=export: a model in a folder of its own."""
