"""The value of ``data.template`` and of infer.py's ``template``. No torch."""

TEMPLATE = "chat or a prompt that contains {instruction}"
"""What is allowed, in words that follow "must be"."""


def is_template(value: str) -> bool:
    """Whether ``value`` names the model's chat template or is a prompt."""
    return value == "chat" or "{instruction}" in value
