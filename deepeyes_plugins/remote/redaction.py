"""Redaction of secrets: the one place that removes keys, tokens and passwords from texts.

A secret is registered by :func:`protect` where it is read from its setting. From then on it is
removed, however it is spelled, from the bodies of responses before anything parses, cuts or stores
them, from the messages of errors, and from every log record of the process, also of other
libraries.

Secrets with fewer than eight characters may be common words: they are removed from messages only,
as whole words, and not from data.
"""

from __future__ import annotations

import base64
import logging
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

REDACTED = "[redacted]"

_SHORT = 8
"""Secrets with fewer characters are redacted as whole words, in messages only."""
_LEVELS = "(?:25){0,8}"
"""Percent signs that are percent-encoded themselves."""
_BACKSLASHES = rf"(?:\\|%{_LEVELS}5[cC]){{1,64}}"
_URL_SAFE = str.maketrans("+/", "-_")
_SHORTHANDS = {"\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}
_SECRET_NAME = re.compile(
    r"(?:token|(?:^|[^a-z])(?:(?:api|access|secret)?key|secret|password|passwd|auth|authorization"
    r"|credentials?|signature|cookie))$",
    re.IGNORECASE,
)

_secrets: dict[str, None] = {}


def protect(*secrets: str | None) -> None:
    """Register secrets; empty ones are ignored."""
    for secret in filter(None, secrets):
        _secrets[secret] = None
        _redact_log_records()


def is_secret(name: str) -> bool:
    """Return whether the name of a header or parameter says that its value is secret."""
    return _SECRET_NAME.search(name) is not None


def protect_credentials(values: Any) -> None:
    """Register the values of headers, parameters or JSON whose names say that they are secret."""
    if isinstance(values, list | tuple):
        for value in values:
            protect_credentials(value)
    elif isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, str) and is_secret(name):
                scheme, _, credential = value.partition(" ")
                protect(value, credential)
                if scheme == "Basic":
                    _protect_basic(credential)
            else:
                protect_credentials(value)


def protect_url(url: str) -> None:
    """Register the user info of a URL, for instance of a proxy, and its secret parameters."""
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    if password:
        protect(f"{user}:{password}", f"{unquote(user)}:{unquote(password)}")
    protect(password, unquote(password))
    protect_credentials(dict(parse_qsl(parts.query)))


def redact(text: str) -> str:
    """Return a message without secrets."""
    for secret in tuple(_secrets):
        for spelling in _spellings(secret):
            if any(anchor in text for anchor in spelling.anchors):
                text = spelling.text.sub(REDACTED, text)
    return text


def redact_body(body: bytes) -> bytes:
    """Return a response body whose secrets are overwritten by asterisks, one for each byte.

    Lengths and offsets do not change, so that binary formats stay readable.
    """
    for secret in tuple(_secrets):
        if len(secret) >= _SHORT:
            for spelling in _spellings(secret):
                if any(anchor in body for anchor in spelling.encoded_anchors):
                    body = spelling.body.sub(lambda found: b"*" * len(found[0]), body)
    return body


def _protect_basic(credential: str) -> None:
    try:
        protect(base64.b64decode(credential).decode().partition(":")[2])
    except ValueError:
        return


class _Spelling:
    """One way of spelling a secret.

    Attributes:
        anchors: Texts of which each occurrence contains at least one. They are searched first,
            since a search by the patterns takes a thousand times as long.
        encoded_anchors: The anchors as bytes.
    """

    def __init__(self, anchors: Iterable[str], pattern: str) -> None:
        self.anchors = tuple(anchors)
        self.encoded_anchors = tuple(anchor.encode() for anchor in self.anchors)
        self._pattern = pattern

    @cached_property
    def text(self) -> re.Pattern[str]:
        """Pattern for texts; compiled at its first use, which is slow."""
        return re.compile(self._pattern)

    @cached_property
    def body(self) -> re.Pattern[bytes]:
        """Pattern for bytes."""
        return re.compile(self._pattern.encode())


@cache
def _spellings(secret: str) -> list[_Spelling]:
    """Return a secret's spellings: character by character, in base64 and in hexadecimal."""
    run = _longest_run(secret)
    anchors = [run, *_escapes(run[:1])]
    if len(secret) < _SHORT:
        return [_Spelling(anchors, rf"(?<!\w){_spelled(secret)}(?!\w)")]
    data = secret.encode("utf-8", "surrogatepass")
    digits = data.hex()
    found = [
        _Spelling(anchors, _spelled(secret)),
        _Spelling([digits, digits.upper()], f"{digits}|{digits.upper()}"),
    ]
    # In base64 a text looks different at each of three offsets, and its first and last characters
    # may depend on the text around it.
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[-(-offset * 8 // 6) : (len(data) + offset) * 8 // 6]
        for alphabet in dict.fromkeys((core, core.translate(_URL_SAFE))):
            found.append(
                _Spelling([_longest_run(alphabet)], rf"{_spelled(alphabet)}[\w+/-]{{0,2}}=*")
            )
    return found


def _longest_run(text: str) -> str:
    """Return the longest run of letters and digits, which encodings leave unchanged."""
    return max(re.findall("[A-Za-z0-9]+", text), key=len, default="")


def _escapes(character: str) -> Iterator[str]:
    """Return the escapes of a letter or digit, by encodings that do not leave it unchanged."""
    for code in map(ord, character):
        yield f"&#{code};"
        for digits in {f"{code:02x}", f"{code:02X}"}:
            yield from (f"%{digits}", f"%25{digits}", rf"\x{digits}", f"u00{digits}")
            yield from (f"&#x{digits};", f"%5Cx{digits}")


def _spelled(text: str) -> str:
    """Return a pattern for a text, each character in any spelling.

    Spellings: as it is, escaped by backslashes, percent-encoded any number of times, as a Unicode
    or hexadecimal escape, and as an HTML entity.
    """
    return "".join(map(_character, text))


@cache
def _character(character: str) -> str:
    code = ord(character)
    literal, data = re.escape(character), character.encode("utf-8", "surrogatepass")
    percent = "".join(f"%{_LEVELS}{_hexadecimal(byte)}" for byte in data)
    spellings = [
        literal,
        percent,
        f"{_BACKSLASHES}(?:{literal}|{percent})",
        "".join(f"{_BACKSLASHES}x{_hexadecimal(byte)}" for byte in data),
        f"{_BACKSLASHES}x{_hexadecimal(code)}" if code < 256 else "",
        "".join(f"{_BACKSLASHES}u{_insensitive(unit)}" for unit in _units(character)),
        f"&#{code};",
        f"&#x{_insensitive(f'{code:x}')};",
        f"&{_ENTITIES[character]};" if character in _ENTITIES else "",
        rf"\+|%{_LEVELS}2[bB]" if character == " " else "",
        f"{_BACKSLASHES}{_SHORTHANDS[character]}" if character in _SHORTHANDS else "",
    ]
    return f"(?:{'|'.join(filter(None, spellings))})"


def _units(character: str) -> list[str]:
    """Return the UTF-16 code units of a character, each as four digits."""
    digits = character.encode("utf-16-be", "surrogatepass").hex()
    return [digits[start : start + 4] for start in range(0, len(digits), 4)]


def _hexadecimal(byte: int) -> str:
    return _insensitive(f"{byte:02x}")


def _insensitive(digits: str) -> str:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in digits)


@cache
def _redact_log_records() -> None:
    """Make the process's log records without secrets, whichever library and handler they are of."""
    make = logging.getLogRecordFactory()

    def redacted(*arguments: object, **options: object) -> logging.LogRecord:
        record = make(*arguments, **options)
        try:
            message = record.getMessage()
        except Exception:  # Arguments that do not fit: the handler would print them as they are.
            record.msg = message = f"{record.msg!r} with {record.args!r}"
            record.args = None
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            if (clean := redact(trace)) != trace:
                record.exc_text, record.exc_info = clean, None
        return record

    logging.setLogRecordFactory(redacted)
