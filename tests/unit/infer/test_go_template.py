"""Templates of Ollama render what the chat templates render: executed by Go's text/template, where Go is installed."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hydraft.errors import ConfigError
from hydraft.infer.export import go_template
from hydraft.infer.export.chat_template import jinja
from hydraft.infer.export.modelfile import Modelfile, check_system
from hydraft.system.source_tree import TINY

TEMPLATES = Path(__file__).parents[2] / "fixtures" / "templates"
REFUSED = {"mistral_v0_3": "2 questions and a system message"}
"""It puts the system message before the last question."""

# As ollama's template.Execute does with messages: the system messages joined, and all messages in a map.
GO = """package main
import ("encoding/json"; "os"; "strings"; "text/template")
type Message struct { Role, Content string }
func main() {
	var cases []struct { Template string; Conversations [][]*Message }
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	var rendered [][]string
	for _, one := range cases {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		var texts []string
		for _, messages := range one.Conversations {
			var system []string
			for _, m := range messages { if m.Role == "system" { system = append(system, m.Content) } }
			var out strings.Builder
			values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": messages, "Response": ""}
			if err := parsed.Execute(&out, values); err != nil { panic(err) }
			texts = append(texts, out.String())
		}
		rendered = append(rendered, texts)
	}
	json.NewEncoder(os.Stdout).Encode(rendered)
}
"""


def render_with(template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TINY, bos_token="<s>")
    tokenizer.chat_template = template
    return lambda messages: tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def conversations(system: bool) -> list[list[go_template.Message]]:
    turns = ["杭州在哪里？", "在浙江。\n\n  它有{{ .西湖 }}。", 'and "Paris"?\\', "`France` </s>", "一"]
    plain = [
        [{"role": "assistant" if n % 2 else "user", "content": turn} for n, turn in enumerate(turns[:count])]
        for count in (1, 3, 5)
    ]
    return plain + ([[{"role": "system", "content": "你是“导游”。"}, *each] for each in plain] if system else [])


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go (Debian's golang-go)")
def test_go_renders_what_jinja_renders(tmp_path: Path) -> None:
    templates = {file.stem: file.read_text() for file in sorted(TEMPLATES.glob("*.jinja"))}
    templates["plain"] = jinja("问：{instruction}\n\u3000{input}答：", "<s>", "</s>")
    cases, expected = [], []
    for name, template in templates.items():
        render = render_with(template)
        if name in REFUSED:
            with pytest.raises(go_template.Unlike, match=REFUSED[name]):
                go_template.derive(render)
            continue
        turns = go_template.derive(render)
        asked = conversations(turns.system is not None)
        cases.append({"Template": go_template.text(turns), "Conversations": asked})
        expected.append([render(messages) for messages in asked])
    assert len(cases) == len(templates) - len(REFUSED)
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        ["go", "run", "main.go"], input=json.dumps(cases), capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}[Round {{ loop.index }}]{{ m['content'] }}{% endfor %}", "depends on their number"),
        ("{{ messages[-1]['content'] }}", "leaves out"),
        ("{% for m in messages %}{{ m['content'].replace('一', '1') }};{% endfor %}", "in another way"),
        ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}", "refuses a conversation"),
    ],
)
def test_templates_that_depend_on_more_than_roles_are_refused(template: str, reason: str) -> None:
    with pytest.raises(go_template.Unlike, match=reason):
        go_template.derive(render_with(template))


def test_a_modelfile_keeps_its_texts() -> None:
    """Its reader drops what Go's strconv.IsPrint does not have, and ends a text at three quotes."""
    turns = go_template.derive(render_with(jinja('"""\u3000{instruction}\x07', "", "")))
    template = go_template.text(turns)
    assert '"""' not in template and "\u3000" not in template and "\\u3000" in template and "\\u0007" in template
    text = Modelfile(template, ["</s>"], 512, "你好", "mit", {"temperature": 0.0}).text()
    assert text.count('"""') == 6 and 'PARAMETER stop "</s>"\nPARAMETER num_ctx 512\nPARAMETER temperature 0\n' in text
    for system in ('a"""b', " a", "a\u3000b", '"a"'):
        with pytest.raises(ConfigError, match="a Modelfile cannot have it"):
            check_system(system)
