"""Write the folder of the embedded model: configuration, tokenizer, chat template.

The folder has no weights: training starts with random ones. The byte-level BPE tokenizer is trained on the corpus that
``generate.py --corpus`` writes. Every Chinese character is a token of its own, so that a small model copies and
recombines characters instead of memorising long words.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
MAX_LENGTH = 512
# Chinese characters, digits and punctuation marks are separate tokens; English words keep
# the space before them.
WORD_PATTERN = r"\p{Han}| ?[A-Za-z']+|\p{N}|\n| ?[^\p{Han}A-Za-z'\p{N}\s]|\s"
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def corpus_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a corpus of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def train_tokenizer(corpus: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which has no unknown symbols."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus_texts(corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def model_config(tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> LlamaConfig:
    """The configuration of a Llama of about 1.9 M parameters; every width is a multiple of 64.

    With biases in the attention and larger initial weights, heads that copy from the prompt form early, which a short
    training needs.
    """
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        attention_bias=True,
        initializer_range=0.05,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )


def publish(trained: Path, folder: Path) -> None:
    """Copy a trained model to the folder it ships from, with weights rounded to bf16 (at most 4,000,000 bytes)."""
    model = AutoModelForCausalLM.from_pretrained(trained, dtype="bfloat16")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size <= 4_000_000, f"{size:,} bytes"
    print(f"{folder}: {model.num_parameters():,} parameters, {size:,} bytes")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--corpus", type=Path, help="corpus of JSON lines to train the tokenizer on")
    parser.add_argument("--publish", type=Path, help="only write this trained model to the folder, in bf16")
    parser.add_argument("--vocabulary", type=int, default=3072, help="number of tokens, including special ones")
    return parser.parse_args()


def main() -> None:
    """Write the folder."""
    options = parse_arguments()
    if options.publish:
        publish(options.publish, options.folder)
        return
    tokenizer = train_tokenizer(options.corpus, options.vocabulary)
    tokenizer.save_pretrained(options.folder)
    model_config(tokenizer, options.vocabulary).save_pretrained(options.folder)
    generation = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=64
    )
    generation.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
