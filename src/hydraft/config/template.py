"""The value of ``data.template`` and of infer.py's ``template``. No torch.

``{instruction}`` and ``{input}`` are replaced. All else is text, other braces too: a prompt may have JSON or LaTeX in it.
"""

import re

TEMPLATE = "chat or a prompt that contains {instruction}"
"""What is allowed, in words that follow "must be"."""

FIELDS = ("instruction", "input")
"""The names in braces that are replaced."""


def is_template(value: str) -> bool:
    """Whether ``value`` names the model's chat template or is a prompt."""
    return value == "chat" or "{instruction}" in value


def parts(template: str) -> list[tuple[str, str]]:
    """The template in pieces, each a text and the field that follows it; the last has no field (``""``)."""
    pieces = re.split(rf"\{{({'|'.join(FIELDS)})\}}", template)
    return list(zip(pieces[::2], [*pieces[1::2], ""], strict=True))


def fill(template: str, instruction: str, input: str) -> str:
    """The prompt of a question; what the record has in braces is never replaced."""
    values = {"instruction": instruction, "input": input, "": ""}
    return "".join(text + values[field] for text, field in parts(template))


def lacks_input(template: str) -> bool:
    """Whether the template has no place for the ``input`` of a record; a chat template has one."""
    return template != "chat" and "{input}" not in template


def notes(template: str) -> list[str]:
    """One line on words in braces that look like fields and are text, such as ``{system}``."""
    words = [word for word in dict.fromkeys(re.findall(r"\{([a-z_]+)\}", template)) if word not in FIELDS]
    if template == "chat" or not words:
        return []
    listed = ", ".join(f"{{{word}}}" for word in words)
    return [
        f"data.template: {listed} {'is' if len(words) == 1 else 'are'} text; only {{instruction}} and {{input}} are replaced"
    ]
