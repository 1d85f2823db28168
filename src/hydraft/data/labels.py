"""The label of tokens that are not trained. No torch."""

IGNORE = -100
"""The ``ignore_index`` of torch's cross-entropy."""
