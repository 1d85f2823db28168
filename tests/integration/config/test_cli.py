"""Invalid input ends with one line that names the change to make, code 2, and no import of torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, run_script
from hydraft.config.cli import quote

REFUSED = {
    "model=tinny": "model=tinny: no such option; did you mean model=tiny?",
    "zero=stage4": "zero=stage4: no such option; did you mean zero=stage",
    "modell=tiny": "modell: no such setting; did you mean model?",
    "+model.typo=3": "model.typo: no such setting",
    "train.lr=3": "train.lr: no such setting; did you mean train.learning_rate?",
    "lora.rank=8": "lora.rank: no such setting; did you mean lora.r?",
    "lora.r=0": "lora.r=0: the rank",
    "lora.r=many": "lora.r: Value 'many'",
    "train.learning_rate=-1": "train.learning_rate=-1.0: must be above 0",
    "quant.kind=nf5": "quant.kind: Invalid value 'nf5', expected one of [none, nf4, int8]",
    "lora={": "lora={: no such option",
    "model.path=/nowhere": "model.path=/nowhere: model=tiny brings training settings",
    "model=auto": "model.path: needs a value",
    "data.train=/无/没有.json": "data.train=/无/没有.json: no such file",
    "experiment=nothing": "experiment=nothing: no such option",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_refusal_is_one_line_with_code_2(override: str) -> None:
    done = run_script("train.py", override)
    assert done.returncode == 2
    assert done.stderr.startswith(f"train.py: {REFUSED[override]}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_refusal_imports_no_torch_and_leaves_no_folder(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['train.py', 'lora.r=0', 'hydra.run.dir=%s']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 2\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'deepspeed', 'datasets', 'wandb') if m in sys.modules])"
    )
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", code % folder], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not folder.exists()


def test_help_of_a_setting_needs_no_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['train.py', '--help', 'train.loss_spike', 'lora']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'deepspeed', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("train.loss_spike\n") and "  default: 3.0\n" in done.stdout
    assert done.stdout.endswith("[]\n")
    unknown = run_script("infer.py", "--help", "top_pp")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == "infer.py: top_pp: no such setting, section or group; did you mean top_p?\n"


def test_an_override_with_help_is_checked() -> None:
    shown = run_script("infer.py", "--help", "top_k=7")
    assert shown.returncode == 0 and "\ntop_k: 7\n" in shown.stdout
    refused = run_script("train.py", "--help", "lora.rank=7")
    assert (refused.returncode, refused.stderr) == (2, "train.py: lora.rank: no such setting; did you mean lora.r?\n")


def test_help_shows_groups_and_commands() -> None:
    done = run_script("train.py", "--help")
    assert done.returncode == 0
    for word in ("zero: stage0, stage1", "quant: int8, nf4, none", "python train.py -m", "infer.py run=last"):
        assert word in done.stdout


def test_a_sweep_of_nothing_is_refused_and_flags_may_be_anywhere() -> None:
    done = run_script("train.py", "lora.r=4", "-m", "train.max_steps=2")
    assert done.returncode == 2 and done.stderr.startswith("train.py: -m: nothing varies: "), done.stderr
    done = run_script("train.py", "lora.r=4,8", "-m", "mode=plan", "train.max_steps=2")
    assert done.returncode == 0 and "lora r=4" in done.stdout and "lora r=8" in done.stdout, done.stderr


def test_a_plan_is_shown_without_a_run(tmp_path: Path) -> None:
    done = run_script("train.py", "mode=plan", "cluster=1x2", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0
    assert "x 2 ranks = " in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["你好，世界！", "it's", "a\\", "a\\'b", "[1,2]", "{x: 1}", "$(echo x) `y`", "1e-3", "null", "a=b,c", "'quoted'", " 两 空格 "]
)  # fmt: skip
def test_a_prompt_is_passed_on_as_typed(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(quote(f"prompt={text}")).value() == text


@pytest.mark.parametrize(
    "typed", [r"{instruction}\n{input}\n", r'"{instruction}\n{input}\n"', "{instruction}\n{input}\n"]
)
def test_a_template_may_be_typed_as_the_readme_has_it(typed: str) -> None:
    """With quotes that the shell removes, with quotes that it keeps, or with real line breaks."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(quote(f"data.template={typed}")).value()
    assert str(parsed).strip("'\"") == "{instruction}\n{input}\n"
    assert OverridesParser.create().parse_override(quote("data.template=chat")).value() == "chat"


@pytest.mark.parametrize(
    "argument", ["lora.r=8,16", "optimizer.betas=[0.9,0.95]", "--help", "-m", "+x.y=1", "data.eval=null"]
)
def test_arguments_that_hydra_can_parse_are_unchanged(argument: str) -> None:
    assert quote(argument) == argument


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompt=x"], "infer.py: run: needs a value"),
        (["run=/nowhere", "prompt=x"], "infer.py: run=/nowhere: no such folder"),
        (["run=x", "prompt=x", "max_new_tokens=0"], "infer.py: max_new_tokens=0: must be at least 1"),
        (["run=x", "prompt=x", "top_p=2"], "infer.py: top_p=2.0: must be in (0, 1]"),
        (["run=x", "prompt=\udcff"], "infer.py: prompt=\\udcff: has characters that are not UTF-8 text"),
        (["run=x", "prompt=x", "system=a\udcff"], "infer.py: system=a\\udcff: has characters that are not UTF-8 text"),
        (["run=x"], "infer.py: prompt: needs a value"),
        (["run=x", "prompt=x", "top_p=0.9"], "infer.py: top_p=0.9 is for sampling: give temperature=0.7 too"),
        (["run=x", "mode=batch", "input=a.jsonl"], "infer.py: output: needs a value"),
        (["run=x", "mode=chat"], "infer.py: mode=chat: needs a terminal"),
        (
            ["run=x", "prompt=x", "cluster=1x2"],
            "infer.py: cluster.ranks_per_node=2: several processes are for mode=batch",
        ),
    ],
)
def test_infer_refuses_invalid_options(arguments: list[str], message: str) -> None:
    done = run_script("infer.py", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_reader_that_closes_the_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} train.py --help | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1 and done.stderr == ""
