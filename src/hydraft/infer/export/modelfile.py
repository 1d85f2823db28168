"""A Modelfile, from which ``ollama create`` makes a model. No torch."""

from dataclasses import dataclass, field

from hydraft.errors import ConfigError

CONTEXT = 8192
"""Tokens of the context, at most: Ollama reserves memory for all of them."""


@dataclass
class Modelfile:
    """What is in a Modelfile."""

    template: str
    """A template of Ollama."""
    stops: list[str]
    """The texts that end an answer."""
    context: int
    """Tokens."""
    system: str | None = None
    license: str | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    """Of the sampling, by Ollama's names."""
    comments: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The file."""
        lines = [
            *(f"# {comment}" for comment in self.comments),
            "FROM ./model.gguf",
            f"TEMPLATE {_quoted(self.template)}",
        ]
        lines += [] if self.system is None else [f"SYSTEM {_quoted(self.system)}"]
        lines += [f'PARAMETER stop "{stop}"' for stop in self.stops]
        lines += [f"PARAMETER num_ctx {self.context}"]
        lines += [f"PARAMETER {name} {value:g}" for name, value in self.parameters.items()]
        lines += [] if self.license is None else [f"LICENSE {_quoted(self.license)}"]
        return "\n".join(lines) + "\n"


def check_system(system: str) -> None:
    """Refuse a system message that cannot be written in a Modelfile.

    Raises:
        ConfigError: its reader ends it early, or drops characters of it.
    """
    lost = sorted({one for one in system if not one.isprintable() and one not in "\n\t"})
    if '"""' in system or system != system.strip() or system.startswith('"') or system.endswith('"') or lost:
        raise ConfigError(
            "system: a Modelfile cannot have it: leave out quotes and white space around it, three quotes in a row"
            + (f", and {', '.join(f'U+{ord(one):04X}' for one in lost)}" if lost else "")
        )


def _quoted(text: str) -> str:
    return f'"""{text}"""'
