"""The part of an exported folder's README.md about the adapters that it was combined from. No torch."""

from pathlib import Path

from hydraft.config.schema import load_config
from hydraft.infer.source import Combined, Source
from hydraft.system.redaction import redact_text


def section(combined: Combined) -> str:
    """A Markdown section: how they were combined, and a line for each."""
    how = f"by peft's `add_weighted_adapter`, `export.combine={combined.method}`"
    how += "" if combined.density is None else f", density {combined.density:g}"
    how += "" if combined.seed is None else f", seed {combined.seed}"
    rows = [
        f"| {source.name} | {weight:g} | {_data(source)} |"
        for source, weight in zip(combined.sources, combined.weights, strict=True)
    ]
    text = f"## Combined from\n\n{how}\n\n| adapter | weight | trained on |\n|---|---|---|\n" + "\n".join(rows)
    return redact_text(text)


def _data(source: Source) -> str:
    """The names of its training files, without this machine's folders."""
    if source.run is None:
        return "–"
    data = load_config(source.run / "config.yaml").data
    places = (data.train, *data.mix)
    only = f" ({', '.join(data.only)})" if data.only else ""
    return ", ".join(f"`{Path(place).name if Path(place).is_absolute() else place}`" for place in places) + only
