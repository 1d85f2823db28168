"""Hides secrets in what is published: configs, command lines, environments, log lines, errors and reports. No torch.

A secret is known by its name (``secret_names.py``) or by its form: a token with a known prefix, a JWT, a private key, the user part of
an address. The name may be that of a dict's key, of a setting or variable, of a flag, of a header or of a query parameter.
"""

import functools
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from hydraft.system.secret_names import is_secret

HIDDEN = "…"

TOKENS = (
    r"hf_[A-Za-z0-9]{16,}", r"api_org_[A-Za-z0-9]{16,}", r"sk-(?=[\w-]*[\dA-Z])[\w-]{16,}", r"[sr]k_(?:live|test)_\w{12,}",
    r"gh[pousr]_[A-Za-z0-9]{12,}", r"github_pat_\w{12,}", r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|agent)-[\w-]{12,}",
    r"xox[a-z]-[\w-]{10,}", r"xapp-[\w-]{10,}", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}(?:[\s:,/|]+[A-Za-z0-9/+]{40})?",
    r"AIza[\w-]{20,}", r"ya29\.[\w-]{12,}", r"npm_[A-Za-z0-9]{20,}", r"pypi-[\w-]{16,}", r"do[opr]_v1_[0-9a-f]{16,}",
    r"SG\.[\w-]{12,}\.[\w-]{12,}", r"whsec_[A-Za-z0-9+/=]{12,}", r"(?:gsk|xai|nvapi|r8|wandb_v1|shpat|lin_api|dapi|csk|pplx|fw|tgp_v1)[_-]?"
    r"(?=[\w-]*\d)[\w-]{24,}", r"hvs\.[\w-]{16,}", r"AGE-SECRET-KEY-1[A-Z0-9]{16,}", r"\d{8,10}:AA[\w-]{30,}", r"eyJ[\w-]{6,}(?:\.[\w-]*){1,4}",
    r"eyJ[\w+/=-]{20,}",
)  # fmt: skip
"""Forms of tokens that are secrets whatever stands before them: of Hugging Face, OpenAI, Anthropic, GitHub, GitLab, Slack, AWS, Google
and others, and JSON Web Tokens."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MARKS = _words(
    "hf_ api_org_ sk- sk_ rk_ ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ gl xox xapp- akia asia abia acca aiza ya29. npm_ pypi- _v1_ sg. whsec_ "
    "gsk xai nvapi r8 shpat lin_api dapi csk pplx fw hvs. age-secret :aa eyj "
    ":// bearer basic authorization cookie x- login sshpass -----begin -u user proxy url uri dsn remote hooks api ? & ; #"
)
"""What a text has, in lower case, that has one of the forms in it: most texts have none, and are not searched further."""

NAME = r"[^\W\d][\w.-]*"

QUERY = r"(?i:sig|signature|token|key|code|sas|auth|jwt|ticket|password|pwd|awsaccesskeyid|googleaccessid|key-pair-id|x-(?:amz|goog|oss|cos|ms)-[\w-]*|q-signature|q-ak)"


LEAD = re.compile(
    rf"""(?P<quote>["'])?(?P<dashes>[-+~]*)(?<![\w.])(?P<name>{NAME}?)(?:(?P<closed>\\{{0,8}}["'])?\s*(?:=>|[=:：＝])\s*|(?P<apart>["'],\s*|\s+))""",
)
"""What may stand before a secret: its name and a sign, or a flag and white space."""

QUOTED = re.compile(r"""(?P<open>\\{0,8}(?:'''|\"{3}|["'`]))(?P<inner>.*?)(?P=open)""", re.DOTALL)

BARE = re.compile(r"\$\([^)]*\)|\$\{[^}]*\}|\\.|\S", re.DOTALL)

STOP = re.compile(r"[,;&|](?=\s|$|[^\W\d][\w.-]*[\"']?[=:])|[)\]}]+(?=[,;.:]?(?:\s|$|[\"'])|,)|[\"'`](?=[\s,;:)\]}]|$)")
"""What ends a secret that is not in quotes."""


def redact(value: Any) -> Any:
    """``value`` with every secret in it replaced by ``…``: text, and the text in dicts and lists.

    A list whose elements are the words of a command is read as one: after ``--token`` comes a secret.
    """
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        named = str(value.get("name", value.get("key", "")))
        return {
            redact_text(key) if isinstance(key, str) else key: _hide(item)
            if isinstance(key, str) and (is_secret(key) or (key == "value" and is_secret(named)))
            else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_elements(value)) if type(value) in (list, tuple) else [*_elements(value)]
    return value


def redact_command(words: Iterable[str]) -> list[str]:
    """The words of a command line with its secrets hidden, each as a whole: ``password=a b`` ends where the word does."""
    return [str(word) for word in _elements([str(word) for word in words])]


def _elements(values: Any) -> Iterator[Any]:
    """The elements of a list, with those hidden that the element before names: ``["--token", x]`` and ``["api_key", x]``."""
    before = ""
    for value in values:
        flag = before if isinstance(before, str) else ""
        pair = len(values) == 2 and len(re.split(r"[_-]", flag)) > 1 and not flag.startswith("-")
        if isinstance(value, str) and flag and (flag.startswith("-") or pair) and _is_name(flag) and value[:1] != "-":
            yield HIDDEN if value else value
        elif isinstance(value, str) and flag in ("-u", "--user", "--proxy-user") and ":" in value:
            yield HIDDEN
        else:
            yield _word(value) if isinstance(value, str) else redact(value)
        before = value


def _is_name(text: str) -> bool:
    return re.fullmatch(rf"[-+~]*{NAME}", text) is not None and is_secret(text.lstrip("-+~"))


def _word(word: str) -> str:
    """One word of a command: after the name of a secret everything belongs to it."""
    found = re.fullmatch(rf"(\s*[-+~]*({NAME})\s*=)(.+)", word, re.DOTALL)
    if found and is_secret(found[2]) and not _is_reference(found[3]):
        return f"{found[1]}{HIDDEN}"
    return redact_text(word)


def _hide(value: Any) -> Any:
    """Everything in ``value`` hidden that is text; a number may be a password too, but true, null and an empty text say something."""
    if isinstance(value, dict):
        return {key: _hide(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hide(item) for item in value]
    if (
        isinstance(value, (bool, float))
        or value is None
        or value == ""
        or (isinstance(value, str) and _is_reference(value))
    ):
        return value
    return HIDDEN


def _is_reference(text: str) -> bool:
    """Whether a value only names a variable, or is a placeholder."""
    return (
        re.fullmatch(r"\$\w+|\$\{[\w.:]+\}|…|null|None|true|false|True|False|<[\w -]+>|\*+", text.strip("\"'"))
        is not None
    )


@functools.lru_cache(maxsize=8192)
def redact_text(text: str) -> str:
    """``text`` with everything that is, or looks like, a secret replaced by ``…``."""
    lower = text.lower()
    if any(mark in lower for mark in MARKS):
        for pattern, hidden in _forms():
            text = pattern.sub(hidden, text)
    return _without_named(text) if re.search(r"[=:：＝]|--?\w|\('", text) else text


@functools.cache
def _forms() -> list[tuple[re.Pattern[str], str]]:
    """Secrets that are known by their form; compiled upon the first use."""
    header = r"(?:proxy-)?authorization|(?:set-)?cookie|x-[\w-]*(?:key|token|auth|secret)[\w-]*"
    return [
        (
            re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*-----|\Z)", re.DOTALL),
            HIDDEN,
        ),
        (re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(TOKENS)})"), HIDDEN),
        # The user part of an address; a password in it may have @, / and : in it, and a port is none.
        (
            re.compile(
                r"(\b[a-z][a-z0-9+.-]{0,20}://)(?:[^\s/?#'\"@:]{0,1000}:(?!\d{1,5}(?:[/?#]|$))[^\s'\"]{0,1000}|[^\s/?#'\"@:]{0,1000}:[^\s/?#'\"]{0,1000})@",
                re.IGNORECASE,
            ),
            rf"\1{HIDDEN}@",
        ),
        (re.compile(r"(\bhttps?://)[^\s/?#'\"@]{1,1000}@", re.IGNORECASE), rf"\1{HIDDEN}@"),
        (
            re.compile(
                r"(?i)((?:proxy|url|uri|dsn|remote)[\"']?\s*[=:]\s*[\"']?)[^\s/@:'\"]{1,1000}:(?!//)[^\s@'\"]{1,1000}@"
            ),
            rf"\1{HIDDEN}@",
        ),
        (re.compile(rf"([?&;#]{QUERY}=)[^&#\s'\"]+"), rf"\1{HIDDEN}"),
        (
            re.compile(
                r"(hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/|api\.telegram\.org/bot)[^\s'\"]+"
            ),
            rf"\1{HIDDEN}",
        ),
        # Headers, with the scheme, since what follows that may be anything; in quotes, or up to the end of the line.
        (re.compile(rf"(?i)(([\"'])(?:{header})\s*+:\s*+)(?:(?!\2).)+"), rf"\1{HIDDEN}"),
        (re.compile(rf"(?i)(\b(?:{header})(?:\\*[\"'])?\s*:\s*)(\\*[\"'])(?:(?!\2).)+(\2)"), rf"\1\2{HIDDEN}\3"),
        (re.compile(rf"(?i)(\b(?:{header})\s*+:\s*+)(?![…\\\"'])[^\n]+"), rf"\1{HIDDEN}"),
        (re.compile(r"(?i)(\bbearer\s+)(?!…)[^\s'\",;)]+"), rf"\1{HIDDEN}"),
        (re.compile(r"(?i)(\bbasic\s+)(?-i:(?=[\w+/]*[\dA-Z=])[A-Za-z0-9+/]{8,}={0,2}(?![\w.]))"), rf"\1{HIDDEN}"),
        (re.compile(r"(\blogin\s+\S+\s+password\s+)\S+"), rf"\1{HIDDEN}"),
        (re.compile(r"(\blogin\s+)(?=[\w-]*\d)[\w-]{20,}"), rf"\1{HIDDEN}"),
        (re.compile(r"(\bsshpass\s+-p\s*)(?:'[^']*'|\"[^\"]*\"|\S+)"), rf"\1{HIDDEN}"),
        (re.compile(r"(\s(?:-u|--user|--proxy-user)[\s=]+['\"]?)[^\s:'\"/]+:[^\s'\"]+"), rf"\1{HIDDEN}"),
    ]


def _without_named(text: str) -> str:
    """``text`` with the values hidden that have a secret's name before them."""
    shown, end = [], 0
    while found := LEAD.search(text, end):
        shown.append(text[end : found.end()])
        end = found.end()
        if _leads_to_secret(found):
            value = _end_of_word(text, end, found["quote"]) if found["quote"] and not found["closed"] else None
            hidden, after = (HIDDEN, value) if value is not None else _value(text, end)
            shown.append(text[end:after] if _is_reference(text[end:after]) else hidden)
            end = after
    return "".join([*shown, text[end:]])


def _leads_to_secret(found: re.Match[str]) -> bool:
    """Whether the name is that of a secret, and what follows is its value: not that of a sentence with a colon in it."""
    text, apart = found.string, found["apart"]
    flag = found["dashes"].startswith("-")
    if apart is not None:
        tuple_ = found["quote"] and text[: found.start()].endswith("(") and not apart.isspace()
        named = tuple_ or (flag and (found["quote"] is None) == apart.isspace())
        if not named or text[found.end() : found.end() + 1] in ("", "-"):
            return False
    elif not flag and re.search(r"[:：]", found[0][found.end("name") - found.start() :]):
        short = found["name"].lower() in ("pass", "auth", "sig", "signature", "sid", "token", "bearer", "pw")
        if short and re.search(r"[A-Za-z] $", text[max(0, found.start() - 2) : found.start()]):
            return False  # "the forward pass: 0.3 s", "unexpected token: }"
    return is_secret(found["name"])


def _end_of_word(text: str, start: int, quote: str) -> int | None:
    """Where the word ends that began with a quote before the name; None if the quote is not closed.

    A backslash means itself in a shell's quotes, and keeps what follows it in Python's: the end is the later of the two.
    """
    shell, python = rf"{quote}\"{quote}\"{quote}|[^{quote}]", rf"\\.|[^{quote}\\]"
    words = [re.compile(rf"(?:{inside})*(?={quote})", re.DOTALL).match(text, start) for inside in (shell, python)]
    return max((word.end() for word in words if word and word.end() > start), default=None)


def _value(text: str, start: int) -> tuple[str, int]:
    """What to show of the value that begins at ``start``, and where it ends: quotes, words in them and without, as a shell joins them."""
    end, whole = start, ""
    while end < len(text):
        if quoted := QUOTED.match(text, end):
            whole = quoted["open"] if end == start else ""
            end = quoted.end()
            if not re.match(r"[^\s,;:&|)\]}\\]", text[end : end + 1]):
                break
        elif (end > start and STOP.match(text, end)) or not (bare := BARE.match(text, end)):
            break
        else:
            whole, end = "", bare.end()
    empty = text[start:end] in ("", whole * 2)
    return (text[start:end] if empty else f"{whole}{HIDDEN}{whole}"), end


def redact_line(command: str) -> str:
    """A command as one line of shell, with its secrets hidden."""
    try:
        words = shlex.split(command)
    except ValueError:
        return redact_text(command)
    return shlex.join(redact_command(words)) if shlex.join(words) == command else redact_text(command)
