"""The label of a token that is not trained. No torch."""

IGNORE = -100
"""What torch's cross entropy ignores (its ``ignore_index``)."""
