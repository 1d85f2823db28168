"""Converts a SentencePiece BPE model (``tokenizer.model``) to a fast tokenizer of the ``tokenizers`` library with the same ids.

SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) repeatedly joins the neighbouring symbols whose concatenation is the
piece with the highest score; ``tokenizers`` joins the pair of lowest rank. So every split of a piece into two pieces is a merge,
ranked by the score of the result. What no piece covers becomes its UTF-8 bytes.
"""

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from hydraft.errors import ConfigError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""``SentencePiece.Type`` of sentencepiece_model.proto."""
BPE = 2
"""``TrainerSpec.ModelType`` of the same file."""
SPACE = "▁"
"""SentencePiece's symbol for a space."""


def read(path: Path) -> Any:
    """The ``ModelProto`` in ``path``.

    Raises:
        ConfigError: the file is missing, not a SentencePiece model, or ``build`` cannot reproduce it.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    if not path.is_file():
        raise ConfigError(f"{path}: missing; the published checkpoint has it")
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ConfigError(f"{path}: not a SentencePiece model (truncated, or a Git LFS pointer?)") from None
    if reason := _unsupported(model):
        raise ConfigError(f"{path}: {reason}, so the fast tokenizer could not give the same ids")
    return model


def read_llama(folder: Path, vocabulary: int) -> Any:
    """The ``ModelProto`` of a checkpoint whose first pieces are those of Llama, for an embedding of ``vocabulary`` rows.

    Raises:
        ConfigError: as ``read``, or it begins with other pieces or has more of them.
    """
    model = read(folder / "tokenizer.model")
    first = [piece.piece for piece in model.pieces[:3]]
    if first != ["<unk>", "<s>", "</s>"] or len(model.pieces) > vocabulary:
        raise ConfigError(f"{folder}: tokenizer.model ({len(model.pieces)} tokens, first {first}) is not this model's")
    return model


def _unsupported(model: Any) -> str | None:
    """Why ``build`` cannot reproduce this model; None if it can."""
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    pieces = [piece.piece for piece in model.pieces]
    count = {kind: sum(piece.type == kind for piece in model.pieces) for kind in (UNKNOWN, BYTE)}
    reasons = {
        "it is not BPE": trainer.model_type != BPE,
        "it normalises text": bool(normalizer.precompiled_charsmap),
        "it removes spaces": normalizer.remove_extra_whitespaces,
        "it leaves spaces as they are": not normalizer.escape_whitespaces,
        "it writes spaces behind words": trainer.treat_whitespace_as_suffix,
        "it has no byte fallback": not trainer.byte_fallback or count[BYTE] != 256,
        "it joins symbols to pieces marked unused": _joins_unused(model),
        "it does not have exactly one unknown piece": count[UNKNOWN] != 1,
        "two of its pieces are the same": len(set(pieces)) < len(pieces),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _joins_unused(model: Any) -> bool:
    """Whether two pieces may be joined to one that is marked unused, which SentencePiece then splits again."""
    known = {piece.piece for piece in model.pieces if piece.type in (NORMAL, UNUSED)}
    unused = (piece.piece for piece in model.pieces if piece.type == UNUSED)
    return any(text[:cut] in known and text[cut:] in known for text in unused for cut in range(1, len(text)))


def merges(model: Any) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, highest score first (scores need not follow the ids)."""
    normal = [(piece.piece, piece.score) for piece in model.pieces if piece.type == NORMAL]
    known = {text for text, _ in normal}
    ranked = sorted(normal, key=lambda entry: -entry[1])  # stable: of equal scores, the lower id first
    splits = ((text[:cut], text[cut:]) for text, _ in ranked for cut in range(1, len(text)))
    return [(left, right) for left, right in splits if left in known and right in known]


def build(model: Any) -> Tokenizer:
    """The fast tokenizer of a model from ``read``.

    User-defined pieces are found before anything is merged. SentencePiece searches for them in the normalized text, hence
    ``normalized=True``.

    Decoding gives the same text as SentencePiece for everything that it encoded; invalid UTF-8, such as an answer cut inside
    a character, may have one more or one fewer replacement character.

    There is one exception: with ``add_dummy_prefix``, a text that is exactly one user-defined piece gets no space in front,
    since the library passes those pieces through the same normalizer.
    """
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    defined = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    fast = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Replace(" ", SPACE)]
    ends = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(_prefix(defined))
        ends.append(decoders.Strip(" ", 1, 0))
    fast.normalizer = normalizers.Sequence(steps)
    fast.decoder = decoders.Sequence(ends)
    fast.add_tokens([AddedToken(text, normalized=True, special=False) for text in defined])
    return fast


def _prefix(defined: list[str]) -> Any:
    """A normalizer that prepends a space to a text unless the text is exactly one user-defined piece."""
    if not defined:
        return normalizers.Prepend(SPACE)
    pieces = "|".join(re.escape(text) for text in defined)
    return normalizers.Replace(Regex(rf"\A(?!(?:{pieces})\z)(?=[\s\S])"), SPACE)
