"""Secrets are hidden wherever they stand, and settings, paths, names and digests are not."""

import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydraft.config import reference
from hydraft.system.redaction import redact, redact_command, redact_line, redact_text
from hydraft.system.secret_names import is_secret

SECRET = "hunter2Zz9"

PLACES = r"""
TOKEN="{}"
TOKEN='a {} b'
--token {}
--token={}
--token '{}'
--password	{}
--header=Authorization:{}
Authorization: Basic {}==
curl -H 'Authorization: Bearer {}' https://h
curl -H "X-Auth-Token: {}" https://h
Authorization: Digest username="x", response="{}"
Cookie: session={}; other={}
Set-Cookie: a={}; Path=/
x-api-key: {}
https://user:{}@host/x
https://user:p@{}@host
https://u:p/{}@host/x
https://{}@host
https://{}:x-oauth-basic@github.com/o/r.git
ssh://git:{}@host/x
postgres://:{}@h/db
redis://{}:@h
http_proxy=u:{}@proxy:8080
https://h/x?token={}&a=1
https://h/x?a=1&sig={}
https://h/x?X-Amz-Signature={}
https://h/x#access_token={}
https://hooks.slack.com/services/T0/B0/{}
DB_PASS={}
PASSWD={}
MYSQL_PWD={}
PGPASSWORD={} psql
OPENAI_API_KEY={}
MY_KEY={}
HF_TOKEN:{}
HF_TOKEN= {}
aws_secret_access_key = {}
auth_token => {}
dbPassword={}
Server=h;Password={};User=x
AccountKey={}==;x
密码：{}
{{"token": "{}"}}
{{'password': '{}'}}
{{\"api_key\": \"{}\"}}
password: {}
'tracker.api_key=a {} b'
cmd="export PASSWORD='{}'"
+x.password="a {}"
[a.password={},b=3]
{{password:{},user:me}}
'x.password=a\'"'"'{}' y
'x.password=a\'b {}' y
password={},{}
export HF_TOKEN={}&& run
curl -u me:{} http://x
sshpass -p {} ssh h
machine x login me password {}
['--token', '{}']
('HF_TOKEN', '{}')
token = '''{}'''
token='a'{}
token=a\ {}
PASSWORD=`echo {}`
PASSWORD=$'{}'
PASSWORD=$(echo {})
PASSWORD=${{X:-{}}}
secrets.x={}
ValueError: error in `train.py --api-key {}`
""".strip().splitlines()

TOKENS = [
    "hf_abcdefghijklmnop", "sk-abcdefghijklmnop1234", "sk-ant-api03-abcdefGHIJ_-kl", "sk-proj-abcDEF123456789012",
    "ghp_abcdefghijklmnop1234", "github_pat_11ABCDEFG0abcdefgh", "glpat-abcdefghij_123456", "xoxb-123456789012-abcdefGHIJ",
    "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "AIzaSyA-1234567890abcdefghijklmnopqrstu",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_def-ghi", "npm_abcdefghijklmnopqrstuvwx",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNz",
]  # fmt: skip

ORDINARY = r"""
data.eval_max_new_tokens=48
tokens_per_second=3
/data/secretary.json
eos_token=<|im_end|>
pad_token='<pad>'
max_new_tokens=5
tokens: 12
token_count=5
image_token_id=5
tokenizer=abc
key=abc
keys: a, b
data.id_key=uid
sort_key=x
num_key_value_heads=8
lora.target_modules=[query_key_value,key,value]
modules_to_save=[embed_tokens,lm_head]
data.columns={instruction: question, output: answer}
sha256: a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1
commit=0123456789abcdef0123456789abcdef01234567
serve.api_key_file=/root/key
data.train=/data/x.json
data.mix=[a.json*0.5,b.json*2]
data.template=chat
model.path=Qwen/Qwen2.5-7B-Instruct
hydra.run.dir=outputs/a=b,c=d
x=${now:%Y-%m-%d}/${now:%H-%M-%S}
hydra.sweep.dir=multirun/hf_transfer_enabled_ok
cluster=2x4 train.learning_rate=1e-4
cluster.ssh_options=['-p','22']
train.pass_over=[1, 2]
prompt='what is your password?'
in the forward pass: out of memory
bad template: unexpected token: '}'
the same likeliest token at 99.0%
pass@1: 0.5
basic authentication
HF_TOKEN=$HF_TOKEN
HF_TOKEN=${HF_TOKEN}
PWD=/root/x
module load cuda/12; source ~/venv/bin/activate
CUDA_VISIBLE_DEVICES= python train.py
--trust-remote-code x
--token-count 5
http://127.0.0.1:8080/v1
https://host:8080/@scope/x
https://huggingface.co/datasets/a/b?download=true
ssh://git@host/x
git@github.com:org/repo.git
task-abcdefghij1234567890
KeyError: 'foo'
rank 1 on host-b: killed by SIGKILL
""".strip().splitlines()


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_hidden(place: str) -> None:
    shown = redact_text(place.format(*[SECRET] * 2))
    assert SECRET not in shown
    assert "…" in shown
    assert SECRET not in str(redact({"setup": [place.format(*[SECRET] * 2)]}))


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_known_by_its_form(token: str) -> None:
    for place in ("{}", "a/{}/b", "x={}", "'{}'", "({})", "a,{},b", "_{}", "x:{}", "http://h/{}", "wandb login {}"):
        shown = redact_text(place.format(token))
        assert not any(part in shown for part in re.findall(r"\S{12,}", token.replace("-----BEGIN", ""))), place


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact_text(text) == text
    assert redact([text]) == [text]


def test_no_setting_of_a_run_is_a_secret() -> None:
    assert [name for command in ("train", "infer") for name in reference.names(command) if is_secret(name)] == []


def test_nested_values_are_hidden_by_their_keys() -> None:
    known = {
        "token": "x", "Authorization": "Basic x", "cookie": "a=b", "password": 1234, "credentials": {"user": ["b"]},
        "env": [{"name": "HF_TOKEN", "value": "y"}, {"name": "HOME", "value": "/root"}], "args": ("--token", "v", "--lr", "1"),
        "api_key": None, "secret": True, "eos_token": "<s>", "tokens": ["a"], "token_count": 3, "same_token": 0.5, "model": {"key": "k"},
    }  # fmt: skip
    assert redact(known) == {
        "token": "…", "Authorization": "…", "cookie": "…", "password": "…", "credentials": {"user": ["…"]},
        "env": [{"name": "HF_TOKEN", "value": "…"}, {"name": "HOME", "value": "/root"}], "args": ("--token", "…", "--lr", "1"),
        "api_key": None, "secret": True, "eos_token": "<s>", "tokens": ["a"], "token_count": 3, "same_token": 0.5, "model": {"key": "k"},
    }  # fmt: skip


def test_what_is_left_of_a_command_is_readable() -> None:
    assert redact_text("export HF_TOKEN=hf_abcdefghijklmnop; module load x") == "export HF_TOKEN=…; module load x"
    assert redact_text("https://me:hush@data.example/x.json") == "https://…@data.example/x.json"
    assert redact_text("curl -H 'Authorization: Bearer abc.def' https://h") == "curl -H 'Authorization: …' https://h"
    assert redact_text("my_api_key: abc") == "my_api_key: …"
    words = ["train.py", "--token", "x y", "password=a b;c", "data=chat"]
    assert redact_command(words) == ["train.py", "--token", "…", "password=…", "data=chat"]
    assert redact_line("python train.py 'x.password=a b' data=chat") == "python train.py 'x.password=…' data=chat"


SECRETS = st.text("abXY09!#$%&()*+,-./:;<=>?@[]^_`{|}~\\'\"é密", min_size=6, max_size=16)


@settings(max_examples=40, deadline=None)
@given(SECRETS, st.sampled_from(["HF_TOKEN", "tracker.api_key", "db-password", "X_SECRET", "--token"]))
def test_any_secret_is_hidden_in_any_quotes(inner: str, name: str) -> None:
    secret = f"zq{inner}qz"  # begins with no sign of the shell's
    quoted = shlex.quote(secret)
    for text in (
        f"run {name}={quoted} data=chat",
        f'{{"{name}": "{secret.replace(chr(92), "").replace(chr(34), "")}"}}',
        shlex.join(["run", f"{name}={secret}", "data=chat"]),
    ):
        shown = redact_text(text)
        left = shown.replace(name, "").replace("data=chat", "").replace("run", "")
        assert not any(part in left for part in (inner[:4], inner[-4:]) if part in text), (text, shown)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(reference.names("train")), st.from_regex(r"[A-Za-z0-9_./*-]{1,20}", fullmatch=True))
def test_an_override_of_a_setting_is_shown(name: str, value: str) -> None:
    assert redact_text(f"{name}={value}") == f"{name}={value}"
    assert redact_command([f"{name}={value}"]) == [f"{name}={value}"]
