"""``export.kind=ollama``: a model as GGUF with a Modelfile, for ``ollama create``. All that may be refused is, before weights are loaded."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from hydraft.config.choices import Precision
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.infer.export import card_head, gguf, go_template
from hydraft.infer.export.modelfile import CONTEXT, Modelfile, check_system
from hydraft.infer.source import Source
from hydraft.models import shapes
from hydraft.system import files

GGUF = "model.gguf"
PIECES = "tokenizer.model"
TYPES = {Precision.fp32: "f32", Precision.fp16: "f16", Precision.bf16: "bf16"}
"""Data types as llama.cpp's converter calls them."""


@dataclass(frozen=True)
class Recipe:
    """What is known before the weights are loaded."""

    converter: Path
    tokenizer: PreTrainedTokenizerBase
    """With the chat template of the export."""
    turns: go_template.Turns
    pieces: Path | None
    """The base's SentencePiece model."""
    comments: list[str]
    log: Path
    """For the converter's output."""


def prepare(tokenizer: PreTrainedTokenizerBase, section: ModelConfig, options: InferConfig, target: Path) -> Recipe:
    """Check that a model can become one of Ollama.

    Args:
        tokenizer: with the chat template of the export.
        section: the native base.
        options: of the command.
        target: the folder to create.

    Raises:
        ConfigError: the chat template cannot be written as one of Ollama, or llama.cpp's converter is missing or refuses the model.
    """

    def render(messages: list[go_template.Message]) -> str:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    try:
        turns = go_template.derive(render)
    except go_template.Unlike as error:
        raise ConfigError(
            f"export.kind=ollama: the chat template cannot be written as one of Ollama: {error}: use export.kind=merged"
        ) from error
    if options.system is not None:
        check_system(options.system)
        if turns.system is None:
            raise ConfigError("system: the model's chat template has no place for a system message: leave it out")
    log = target.with_name(f"{target.name}.convert.log")
    script, pieces = gguf.converter(options.export.llama_cpp), _pieces(tokenizer, section)
    found = Recipe(script, tokenizer, turns, pieces, _comments(tokenizer, render, turns), log)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        config = AutoConfig.from_pretrained(
            section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
        config.save_pretrained(folder)
        _for_converter(found, Path(folder))
        gguf.check(found.converter, Path(folder), log)
    return found


def finish(recipe: Recipe, staging: Path, source: Source, options: InferConfig, made: tuple[Precision, str]) -> None:
    """Replace the merged model in ``staging`` by its GGUF and a Modelfile; README.md stays.

    Args:
        recipe: of ``prepare``.
        staging: the folder with the merged model and its card.
        source: that was exported.
        options: of the command.
        made: the data type of the merged weights, and the name of the model.
    """
    precision, name = made
    file = staging / GGUF
    _for_converter(recipe, staging)
    gguf.convert(recipe.converter, staging, file, TYPES[precision], name, recipe.log)
    turns, begin = recipe.turns, recipe.tokenizer.bos_token
    starts = [turns.begin] if turns.system is None else [turns.begin, turns.system[0]]
    in_template = bool(begin) and all(text.startswith(str(begin)) for text in starts)
    if gguf.settle_begin(recipe.converter, file, in_template):
        turns = _without_begin(turns, str(begin))
    config, generation = (files.read_object(staging / f"{kind}.json") for kind in ("config", "generation_config"))
    ends = generation.get("eos_token_id")
    known = card_head.of_base(source)
    text = Modelfile(
        template=go_template.text(turns),
        stops=[
            str(recipe.tokenizer.convert_ids_to_tokens(end))
            for end in (ends if isinstance(ends, list) else [ends])
            if end is not None
        ],
        context=min(int(config.get("max_position_embeddings") or CONTEXT), CONTEXT),
        system=options.system,
        license=options.export.license or known.get("license_name") or known.get("license"),
        parameters=_sampling(generation),
        comments=recipe.comments,
    ).text()
    for entry in staging.iterdir():
        if entry.name not in (GGUF, "README.md"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (staging / "Modelfile").write_text(text, encoding="utf-8")


def _pieces(tokenizer: PreTrainedTokenizerBase, section: ModelConfig) -> Path | None:
    """The base's SentencePiece model, which has the scores of the tokens; None for a tokenizer of another kind.

    Raises:
        ConfigError: it is missing; llama.cpp's converter would then give all tokens the same score, and text other tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    if not model.get("byte_fallback"):
        return None
    folder = shapes.folder_of(section)
    if folder is None or not (folder / PIECES).is_file():
        raise ConfigError(
            f"export.kind=ollama: {section.path} has no {PIECES}, from which llama.cpp's converter takes the scores of the tokens: "
            "put it into the folder of the base, and give base=<that folder>"
        )
    return folder / PIECES


def _for_converter(recipe: Recipe, folder: Path) -> None:
    """Write to ``folder`` what the converter reads of the tokenizer: its SentencePiece model, and defaults that are not GGUF's."""
    if recipe.pieces is not None:
        shutil.copyfile(recipe.pieces, folder / PIECES)
    config = files.read_object(folder / "tokenizer_config.json")
    if "SpecialToken" not in json.dumps(files.read_object(folder / "tokenizer.json").get("post_processor")):
        config.setdefault("add_bos_token", False)
    if recipe.pieces is not None:
        added = recipe.tokenizer.added_tokens_decoder  # of these, transformers writes no list that the converter reads
        config["added_tokens_decoder"] = {
            n: {"content": one.content, "special": one.special} for n, one in added.items()
        }
        if not _adds_space(recipe.tokenizer, recipe.turns):
            config["add_prefix_space"] = False
    files.write_json(folder / "tokenizer_config.json", config)


def _adds_space(tokenizer: PreTrainedTokenizerBase, turns: go_template.Turns) -> bool:
    """Whether a space is put before text that follows a special token, as llama.cpp does everywhere or nowhere."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    begin = tokenizer(turns.begin + "a", add_special_tokens=False)["input_ids"]
    first = next((number for number in begin if number not in special), None)
    return first is None or str(tokenizer.convert_ids_to_tokens(first)).startswith("▁")


def _without_begin(turns: go_template.Turns, begin: str) -> go_template.Turns:
    """The turns without the beginning-of-sequence token, which Ollama puts there itself."""
    system = turns.system and (turns.system[0].removeprefix(begin), turns.system[1])
    return go_template.Turns(turns.begin.removeprefix(begin), system, turns.answer, turns.question, turns.end)


def _comments(tokenizer: PreTrainedTokenizerBase, render: go_template.Render, turns: go_template.Turns) -> list[str]:
    """How Ollama's prompts may differ from those of the chat template."""
    found = []
    if turns.system is None:
        found.append("The chat template has no place for a system message: one in a request is left out.")
    if go_template.trims(render, turns):
        found.append("The chat template removes white space around messages, which Ollama's cannot: send them without.")
    if "strftime_now" in json.dumps(tokenizer.chat_template):
        found.append("The chat template writes the current date; here it is that of the export.")
    return found


def _sampling(generation: dict[str, Any]) -> dict[str, float]:
    """The sampling of a generation_config.json: greedy unless it samples, and no penalty, which are not Ollama's defaults."""
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"} if generation.get("do_sample") else {}
    found = {ours: float(generation[theirs]) for theirs, ours in names.items() if generation.get(theirs) is not None}
    return {"temperature": 0.0, **found, "repeat_penalty": float(generation.get("repetition_penalty") or 1.0)}
