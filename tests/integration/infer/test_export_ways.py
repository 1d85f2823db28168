"""Exports for Ollama, with llama.cpp's converter, and uploads to the hub, to a server of this machine with the hub's own client."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaTokenizer

from conftest import run_script
from hub_server import TOKEN, VISIBILITY, hub
from hydraft.config.choices import ExportKind
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import gguf
from hydraft.infer.export.run import run
from hydraft.infer.resolve import find
from published import sentencepiece_model
from using import adapter

needs_converter = pytest.mark.skipif(
    gguf.VARIABLE not in os.environ, reason="needs llama.cpp's source in the folder $LLAMA_CPP"
)


def base_with_pieces(folder: Path) -> Path:
    """A random two-layer Llama with a SentencePiece tokenizer, whose chat template is ChatML."""
    folder.mkdir()
    pieces = sentencepiece_model(defined=("<|im_start|>", "<|im_end|>"))
    (folder / "tokenizer.model").write_bytes(pieces)
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (Path(__file__).parents[2] / "fixtures/templates/chatml.jinja").read_text()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**shape, vocab_size=3000, bos_token_id=1, eos_token_id=2, max_position_embeddings=512)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run exported for Ollama, and its merged model."""
    folder = tmp_path_factory.mktemp("ollama")
    base = base_with_pieces(folder / "base")
    made = adapter(folder / "run", "model=auto", f"model.path={base}", "quant=none", base=base)
    target, merged = folder / "Out 1", folder / "merged"
    done = run_script(
        "infer.py", "mode=export", f"run={made}", f"output={target}", "export.kind=ollama", "export.license=mit", "system=你是一位导游。"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ollama create out-1 -f" in done.stdout
    options = InferConfig(run=str(made), output=str(merged))
    run(find(options), options)
    return target, merged


def asked(merged: Path) -> str:
    chat = [{"role": "user", "content": "房间很干净😀，12 apples\n\n  of Paris."}]
    tokenizer = AutoTokenizer.from_pretrained(merged)
    return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


def logits_of(merged: Path, ids: list[int], folder: Path | None = None) -> torch.Tensor:
    """Those of the merged model, or of the GGUF in ``folder`` as transformers reads it."""
    place, named = (merged, {}) if folder is None else (folder, {"gguf_file": "model.gguf"})
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **named)
        return torch.as_tensor(model(torch.tensor([ids])).logits[0])


@needs_converter
def test_a_gguf_is_the_merged_model(exported: tuple[Path, Path]) -> None:
    target, merged = exported
    assert {file.name for file in target.iterdir()} == {"model.gguf", "Modelfile", "README.md"}
    assert str(target.parent) not in (target / "README.md").read_text()
    assert b"staging" not in (target / "model.gguf").read_bytes()[:200_000]
    modelfile = (target / "Modelfile").read_text()
    for line in (
        "FROM ./model.gguf",
        'SYSTEM """你是一位导游。"""',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER num_ctx 512",
        'LICENSE """mit"""',
    ):
        assert f"{line}\n" in modelfile
    ids = AutoTokenizer.from_pretrained(merged)(asked(merged), add_special_tokens=False)["input_ids"]
    assert torch.equal(logits_of(merged, ids), logits_of(merged, ids, target))


@needs_converter
def test_llama_cpp_computes_what_the_merged_model_does(exported: tuple[Path, Path]) -> None:
    """With the same tokens; its cache has 16 bits."""
    llama_cpp = pytest.importorskip("llama_cpp")
    target, merged = exported
    text = asked(merged)
    ids = AutoTokenizer.from_pretrained(merged)(text, add_special_tokens=False)["input_ids"]
    model = llama_cpp.Llama(str(target / "model.gguf"), logits_all=True, verbose=False, n_ctx=256)
    try:
        assert (
            model.tokenize(text.encode(), special=True) == ids
        )  # with a beginning-of-sequence token if the file asks for one
        model.eval(ids)
        found = torch.tensor(model.scores[: len(ids)])
    finally:
        model.close()
    ours = logits_of(merged, ids)
    assert float((found - ours).abs().max()) < 0.01 * float(ours.abs().max())


@needs_converter
def test_a_model_that_the_converter_does_not_know_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    made = adapter(tmp_path / "run", "quant=none")
    done = run_script("infer.py", "mode=export", f"run={made}", f"output={tmp_path / 'out'}", "export.kind=ollama")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pre-tokenizer was not recognized" in done.stderr and "use export.kind=merged" in done.stderr
    log = tmp_path / "out.convert.log"
    assert str(log) in done.stderr and "chkhsh" in log.read_text()
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = adapter(tmp_path / "run", "quant=none")
    monkeypatch.delenv(gguf.VARIABLE, raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refused(message: str, **settings: object) -> None:
        options = InferConfig(run=str(made), output=str(tmp_path / "out"))
        for name, value in settings.items():
            setattr(options.export, name, value)
        with pytest.raises(ConfigError, match=message):
            run(find(options), options)

    refused("git clone https://github.com/ggml-org/llama.cpp", kind=ExportKind.ollama)
    refused("no convert_hf_to_gguf.py in it", kind=ExportKind.ollama, llama_cpp=str(tmp_path))
    refused("there is no token of the hub", push="owner/name")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    refused("the license of the base is not known", push="owner/name")
    refused("folder of this machine", push="owner/name", kind=ExportKind.adapter, license="mit")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


def test_an_export_is_uploaded_and_an_upload_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = adapter(tmp_path / "run", "quant=none")
    (made / "adapter" / "probe.json").write_text(json.dumps({"input_ids": [5, 6], "top_ids": [], "top_logits": []}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    repositories = tmp_path / "hub"
    with hub(repositories, tmp_path / "cache", monkeypatch) as served:
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", constants.ENDPOINT, raising=False)
        options = InferConfig(run=str(made), output=str(tmp_path / "out"))
        options.export.push, options.export.license = "owner/name", "apache-2.0"
        run(find(options), options)
        assert f"uploaded to {constants.ENDPOINT}/owner/name" in capsys.readouterr().out
        there = repositories / "owner" / "name"
        assert (there / VISIBILITY).read_text() == "private"
        for file in (tmp_path / "out").iterdir():
            assert (there / file.name).read_bytes() == file.read_bytes()
        assert ModelCard.load(there / "README.md").data.license == "apache-2.0"
        assert str(tmp_path) not in "".join(f.read_text() for f in there.iterdir() if f.suffix in (".json", ".md"))
        served.clear()
        monkeypatch.setenv("HF_TOKEN", "wrong")
        options.output = str(tmp_path / "again")
        with pytest.raises(RunFailed, match=r"401 .*hf upload owner/name .*again \. --private"):
            run(find(options), options)
        assert (tmp_path / "again" / "model.safetensors").is_file()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        options.output = str(tmp_path / "third")
        run(find(options), options)
        assert not [one for one in served if one.startswith("PUT")]  # its weights are there already
