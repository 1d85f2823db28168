"""Model classes of our own, for architectures that transformers does not have.

A module ``modeling_*.py`` is copied into each folder that such a model is saved in, and imports only torch and transformers.
"""
