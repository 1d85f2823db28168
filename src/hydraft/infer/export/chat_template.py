"""A plain prompt template as a chat template, so that servers ask an exported model as training did.

``data.template="{instruction}\\n{input}\\n"`` is text of ours; every server reads the Jinja of the tokenizer. No torch.
"""

import json
from string import Formatter


def jinja(template: str, begin: str, eos: str) -> str:
    """What ``encode`` renders from a plain ``template``: ``begin`` ahead of all, ``eos`` behind each answer."""
    question = " ~ ".join(_parts(template)) or '""'
    return (
        f"{{{{- {_text(begin)} -}}}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {question} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- message['content'] ~ {_text(eos)} -}}}}"
        "{%- else -%}"
        f"{{{{- message['content'] ~ {_text(chr(10))} -}}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    )


def _parts(template: str) -> list[str]:
    """The template as Jinja's terms; {input} is empty, since a chat's question is one text."""
    parts = []
    for literal, field, _, _ in Formatter().parse(template):
        if literal:
            parts.append(_text(literal))
        if field == "instruction":
            parts.append("message['content']")
    return parts


def _text(text: str) -> str:
    """A literal of Jinja, which reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
