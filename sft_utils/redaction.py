"""What is secret, and how it is kept out of all that is printed, written or raised.

A profile may hold a token of access (``hub_token`` in ``[sft.arguments]``). It reaches `SFTConfig`
as it is, and no page, file, fingerprint or message. The list of what is secret is here alone.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "<hidden>"

# What an argument or a key is called that holds a secret, at the end of its name: hub_token,
# push_to_hub_token, WANDB_API_KEY, client-secret. A key may be the bare word.
_NAMES = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret|api[_-]?key|(?:access|account|private|secret)[_-]?key|"
    r"credentials?|auth|authorization|bearer|cookie)"
)
_SECRET = re.compile(rf"(?:.*[_-])?token|.*{_NAMES}", re.IGNORECASE)
# Tokens of a text, by the names that tokenizers give them.
_OF_TEXT = re.compile(
    r"(?:bos|eos|unk|sep|pad|cls|mask|(?:bo|eo)[iav]|image|audio|video|stop|(?:\w+_)?start|end)_token",
    re.IGNORECASE,
)
# In a text: {"hub_token": "…"}, hub_token=…, 'api_key': …; a user and a password in an address; and
# what the Hub and others issue, by its form.
_IN_TEXT = re.compile(
    rf"""(?P<name>[\w-]*(?:[_-]token|\btoken(?=["'=])|{_NAMES}))
         (?P<is>["']?\s*[:=]\s*)
         (?P<value>(?:bearer\s+)?(?:"[^"\n]*"|'[^'\n]*'|[^\s,;"'}})\]]+))""",
    re.IGNORECASE | re.VERBOSE,
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_BY_FORM = re.compile(
    r"\b(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-(?:[a-z]+-)?)[A-Za-z0-9_]{20,}\b"
)


def is_secret(name: str) -> bool:
    """Whether what an argument or a key of this name holds is secret.

    ``hub_token`` is, ``eos_token`` and ``max_new_tokens`` are not.
    """
    return bool(_SECRET.fullmatch(name)) and not _OF_TEXT.fullmatch(name)


def redact(value: Any, name: str = "") -> Any:
    """The value of an argument as it may be shown: what is secret in it is `HIDDEN`.

    Looks into dicts, lists and texts. Yes, no and nothing are no secrets.
    """
    if name and is_secret(name):
        return value if value is None or isinstance(value, bool) else HIDDEN
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(redact(item) for item in value)
    return redact_text(value) if type(value) is str else value


def redact_text(text: str) -> str:
    """A text as it may be shown: what it says of a secret is `HIDDEN`."""

    def hide(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        word = match["is"].strip() == ":" and not re.search("[_-]", name)  # "The secret: …"
        if word or not is_secret(name) or value.lower() in ("none", "true", "false", HIDDEN):
            return match[0]
        quote = value[0] if value[0] in "\"'" else ""
        return f"{name}{match['is']}{quote}{HIDDEN}{quote}"

    return _BY_FORM.sub(HIDDEN, _IN_ADDRESS.sub(HIDDEN, _IN_TEXT.sub(hide, text)))


def without_secrets(value: Any) -> Any:
    """The same with secret keys left out, for a file that is run again: a mark would be sent."""
    if isinstance(value, dict):
        return {k: without_secrets(v) for k, v in value.items() if not is_secret(str(k))}
    if type(value) in (list, tuple):
        return type(value)(without_secrets(item) for item in value)
    return redact_text(value) if type(value) is str else value
