"""Recognises secrets that someone wrote into the configuration. Pure; returns what kind it is, never the secret itself.

A configuration is copied, printed and attached to reports, so it may only name the files that hold secrets. The rules
are heuristics made to be wrong on the safe side: no key of the schema needs a value that they refuse.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "pwd", "mnemonic", "secret", "secrets", "token", "credential", "credentials"}
    | {"bearer", "privkey", "apikey"}
)
_SECRET_PAIRS = re.compile(
    r"(private|priv|api|secret|access|signing|account|auth)_?key|(seed|recovery)_?(phrase|words)"
)
_ARTIFACT_ID = re.compile(r"sha256:[0-9a-f]{64}(?![0-9A-Za-z])")
_HEX_KEY = re.compile(r"(?<![0-9A-Za-z/])(?:0[xX])?[0-9a-fA-F]{64}(?![0-9A-Za-z])")
_PHRASE = re.compile(r"[a-z]{3,8}(?:[\s,]+[a-z]{3,8}){11,23}")
_PHRASE_LENGTHS = (12, 15, 18, 21, 24)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_USER_INFO = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]*@")
_QUERY_SECRET = re.compile(r"[?&#](?:[a-z_-]*(?:key|token|secret|password|auth))=", re.IGNORECASE)
_PROVIDER_KEY = re.compile(r"/(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{24,}(?=[/?#]|$)")


def names_secret(name: str) -> bool:
    """Whether a key with this name would hold a secret. `password_file` names a file, so it does not."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_")
    if name.endswith("_file"):
        return False
    return not _SECRET_WORDS.isdisjoint(name.split("_")) or _SECRET_PAIRS.search(name) is not None


def secret_in(text: str) -> str | None:
    """What kind of secret `text` holds, or None."""
    if _HEX_KEY.search(_ARTIFACT_ID.sub("", text)):
        return "a bare 32-byte hex key"
    if "PRIVATE KEY-----" in text:
        return "a private key"
    words = text.strip()
    if _PHRASE.fullmatch(words) and len(re.split(r"[\s,]+", words)) in _PHRASE_LENGTHS:
        return "a recovery phrase"
    if _USER_INFO.search(text):
        return "a URL with credentials"
    if any(_QUERY_SECRET.search(url) or _PROVIDER_KEY.search(_path_of(url)) for url in _URL.findall(text)):
        return "a URL with an access key"
    return None


def where_it_belongs(what: str) -> str:
    """The fix for a secret, given the name of its key or what `secret_in` calls it."""
    what = what.lower()
    if "url" in what or "rpc" in what:
        return "put the URL into a file of mode 0600 and name that file by chain.rpc_url_file"
    if "pass" in what or "pwd" in what:
        return "put the password into a file of mode 0600 and name that file by keys.password_file"
    if "key" in what or "phrase" in what or "mnemonic" in what or "seed" in what:
        return "put the key into a keystore and name that file by keys.keystore_file"
    return "only files of mode 0600 hold secrets, and `*_file` keys name them"


def _path_of(url: str) -> str:
    _, _, rest = unquote(url).partition("://")
    _, slash, path = rest.partition("/")
    return slash + path
