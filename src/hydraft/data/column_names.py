"""The names that the parts of a record have in published data sets. No torch."""

from hydraft.config.choices import Format
from hydraft.data.keys import TAGS

KEYS = {
    Format.alpaca: ("instruction", "output"),
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.text: ("text",),
}
"""The keys that a record of each format must have."""

OTHER_CHATS = ("conversation", "dialogue", "dialog", "chat", "items", "contents", "data")
"""Other names of ``messages``; only if the value is a list of turns."""

ANSWERS = {
    "instruction": ("output", "response", "answer", "completion", "target", "solution"),
    "prompt": ("completion", "response", "answer", "output", "target"),
    "question": ("answer", "response", "solution", "output", "completion", "answers"),
    "query": ("response", "answer", "output", "answers"),
    "problem": ("solution", "answer", "output", "response"),
    "user": ("assistant",),
    "human": ("assistant", "gpt", "bot"),
}
"""Names of a question, and of its answer in the order of preference."""

WEAK_ANSWERS = {
    "input": ("output", "target", "response", "answer", "completion"),
    "inputs": ("targets", "outputs"),
    "q": ("a",),
    "source": ("target",),
    "content": ("summary",),
    "article": ("highlights", "summary"),
    "document": ("summary",),
    "dialogue": ("summary",),
}
"""Names that are a question only beside such an answer, and if there is no other question."""

CLASSIFIED = ("text", "sentence", "review", "content", "comment")
"""Names of a text that has a ``label``."""

BESIDE_TEXT = ("summary", "target", "label", "answer", "response", "output", "completion")
"""Keys beside ``text`` that make it a question."""

OPTIONAL = {
    "input": ("input", "context"),
    "system": ("system", "system_prompt", "meta_instruction", "systemInstruction", "system_instruction"),
    "history": ("history",),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),
    "tools": ("tools", "functions"),
}
"""Further parts of a record, and the keys that they are found under."""

EXACT = {
    ("reasoning", "reasoning_content"), ("tools", "functions"), ("messages", "input"), ("tools", "input"),
    *(("desirable", tag) for tag in TAGS),
}  # fmt: skip
"""Names that need not be reported although they are not those of a format."""
