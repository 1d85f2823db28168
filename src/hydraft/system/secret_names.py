"""Whether a name is that of a secret: ``HF_TOKEN``, ``x-api-key`` and ``dbPassword`` are, ``eos_token`` and ``api_key_file`` are not."""

import functools
import itertools
import re

PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
"""A word of a name in snake_case, kebab-case, camelCase or Chinese."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STRONG = _words(
    "password passwd passphrase passwort secret secrets passwords credential credentials authorization cookie cookies apikey apikeys "
    "authtoken accesstoken accesskey secretkey privatekey mnemonic sessionid 密码 口令 密钥 秘钥 令牌"
)
"""Words of a secret's name, in any place of it."""

LAST = frozenset(("pass", "pwd", "pw", "auth", "sig", "signature", "jwt", "sas", "bearer", "otp", "sid", "dsn"))
"""Words that make a secret as the last of a name; ``pass``, ``sig`` and the like are other things in the middle of one."""

PAIRS = frozenset(
    (first, second)
    for first in ("api", "access", "secret", "private", "auth", "refresh", "bearer", "session", "account", "client", "hf", "csrf")
    for second in ("key", "keys", "token", "tokens")
)  # fmt: skip
"""Two words beside each other in a secret's name."""

PLACES = _words(
    "file files path paths dir folder name names env var url uri length len count counts size type types policy min max ttl timeout "
    "expiry expires enabled required manager provider store helper version rate per index indices ids number"
)
"""Last words of names that say where a secret is, or how long: their values are none."""

MODEL = _words(
    "eos bos pad unk sep cls mask image video audio stop end start begin next last first per special new prompt control boundary same "
    "likeliest predicted eot eoh eod eom sot fim prefix suffix middle a an each one vision placeholder tool think thinking added "
    "unknown padding class chat turn decoder input output unexpected expected of the no any this that every invalid"
)
"""Words before ``token`` where it is a piece of text."""

KEYS = _words(
    "full id primary foreign sort cache group query partition public map dict json field record lookup index join model data run job label column "
    "row image text input output prompt kv value sequence a the same dictionary unknown missing config no every this that of and last "
    "first next unexpected extra duplicate"
)
"""Words before ``key`` where it is no secret."""

QUALIFIERS = _words(
    "value prod production dev test staging read write rw ro old new base64 b64 encoded plain str string main backup default live "
    "hash id user admin root"
)
"""Words that may follow the secret's own."""


@functools.lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether the value of ``name`` is to be hidden; of a dotted name the last part counts, and the strong words of the others."""
    *sections, own = re.split(r"[./\[\]]", name.strip()) if name.strip() else [""]
    if any(set(map(str.lower, PART.findall(section))) & STRONG for section in sections):
        return True
    words = [word.lower() for word in PART.findall(own)]
    while len(words) > 1 and (words[-1].isdigit() or words[-1] in QUALIFIERS):
        words.pop()
    if not words or words[-1] in PLACES:
        return False
    if any(_is_strong(word) for word in words) or any(pair in PAIRS for pair in itertools.pairwise(words)):
        return True
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token" or (words[-1].endswith("token") and words[-1] not in ("untoken", "subtoken", "detoken")):
        return before not in MODEL
    if words[-1] == "key":
        return bool(before) and before not in KEYS
    return words[-1] in LAST and own not in ("PWD", "OLDPWD")


def _is_strong(word: str) -> bool:
    """Whether a word is a strong one, or ends in one: ``dbpassword``, ``数据库密码``."""
    return word in STRONG or word.endswith(
        ("password", "passwd", "passphrase", "apikey", "密码", "口令", "密钥", "令牌")
    )
