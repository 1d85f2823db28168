"""A plain prompt template as a Jinja chat template, so that servers prompt an exported model as in training. No torch.

``data.template="{instruction}\\n{input}\\n"`` is a format of this project; servers read the tokenizer's Jinja template.
"""

import json

from hydraft.config.template import parts


def jinja(template: str, begin: str, eos: str) -> str:
    """The Jinja template that renders what ``data/tokenize.py`` does: ``begin`` first, and ``eos`` after each answer."""
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
    """The template as Jinja expressions; {input} is empty, since a chat turn is one text."""
    expressions = []
    for text, field in parts(template):
        if text:
            expressions.append(_text(text))
        if field == "instruction":
            expressions.append("message['content']")
    return expressions


def _text(text: str) -> str:
    """A Jinja literal, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
