"""The thoughts of an answer, apart from its text. No torch.

Models write their thoughts between two marks ahead of the answer. A record may have them in its text, as the model would write them, or
under a key of their own (``reasoning_content``).
"""

MARKS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM-4.5, Granite 3.2, SmolLM3, Hunyuan, MiniCPM4
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi
)
"""What opens and closes the thoughts, in the families that have any."""


def split(text: str) -> tuple[str, str]:
    """The thoughts at the start of an answer and the rest of it, without the marks and the blank space around them.

    The opening mark may be missing, where the template has it in the prompt (DeepSeek-R1). An answer that ends before its thoughts
    do has no text.
    """
    for opening, closing in MARKS:
        before, closed, rest = text.partition(closing)
        if closed and opening not in before.strip().removeprefix(opening):
            return before.strip().removeprefix(opening).strip(), rest.strip()
        if not closed and text.lstrip().startswith(opening):
            return text.strip().removeprefix(opening).strip(), ""
    return "", text
