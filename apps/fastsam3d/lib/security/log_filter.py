"""No patient identifiers in the log: MONAI Label logs metadata of images and labels as they are."""

from __future__ import annotations

import logging
import re

HIDDEN = "***"
_KEYWORDS = (
    r"Patient\w*|OtherPatient\w*|IssuerOfPatientID|AccessionNumber|Study(?:Date|Time|ID|Description)|"
    r"Series(?:Date|Time|Description)|(?:Referring|Performing|Requesting|NameOf\w*)\w*Physician\w*|Institution\w*|"
    r"OperatorsName"
)
_TAGS = (
    r"0010[0-9A-Fa-f]{4}|0008(?:002[01]|003[01]|0050|008[012]|009[0-9A-Fa-f]|1030|103[Ee]|10[4-7][0-9A-Fa-f])|00200010|"
    r"0032103[23]"
)
"""Attributes in DICOM JSON: of the patient, and of who examined where, when and why."""
_WORDS = (
    r"(?:(?:Other |Issuer of )?Patient|Accession Number|Study (?:Date|Time|ID|Description)|"
    r"Series (?:Date|Time|Description)|(?:Referring|Performing|Requesting|Name of) ?Physician|Institution|Operators)"
    r"[\w'() ]{0,60}? [A-Z]{2}"
)
"""Attributes as pydicom prints them, with the two letters of the kind of value: `Patient's Name   PN: 'Doe^Jane'`."""
_KEY = re.compile(rf"""(?:\b(?:{_KEYWORDS}|{_TAGS})\b['"]?|\b{_WORDS})[ \t]*[:=][ \t]*""")
_BARE = re.compile(
    r"""[^;}\])\n]*?(?=[,;][ \t]*['"]?[A-Za-z0-9]\w*['"]?[ \t]*[:=]|[ \t][A-Za-z]\w*=|[;}\])\n]|$)""", re.MULTILINE
)
"""A value without quotes: to the end of the line, or to what is a field of its own. Names have spaces and commas."""
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_UPLOAD = re.compile(r"""(filename=)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def without_identifiers(text: str) -> str:
    """The text with the values of identifying DICOM attributes, and names of uploaded files, replaced."""
    parts, done = [], 0
    while match := _KEY.search(text, done):
        parts += [text[done : match.end()], HIDDEN]
        done = _end_of_value(text, match.end())
    return _UPLOAD.sub(rf"\g<1>{HIDDEN}", "".join([*parts, text[done:]]))


def _end_of_value(text: str, at: int) -> int:
    """Where the value ends that begins at an index: a word or words, a quoted text, a list or an object.

    What has no end was cut off, so all that follows belongs to it.
    """
    if text[at : at + 1] not in ("'", '"', "{", "["):
        return _BARE.match(text, at).end()
    depth = 0
    while at < len(text):
        if text[at] in "'\"":
            quoted = _QUOTED.match(text, at)
            at = quoted.end() if quoted else len(text)
        else:
            depth += (text[at] in "{[") - (text[at] in "}]")
            at += 1
        if depth == 0:
            break
    return at


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a caller's wrong format string; logging reports it
            return True
        hidden = without_identifiers(text)
        if hidden != text:
            record.msg, record.args = hidden, ()
        if record.exc_info and not record.exc_text:
            # Formatters take the text as it is where there is one.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = without_identifiers(record.exc_text)
        if record.stack_info:
            record.stack_info = without_identifiers(record.stack_info)
        return True


def install_log_filter() -> None:
    """Puts the filter on every handler that there is, once."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    for handler in {handler for found in loggers for handler in found.handlers}:
        if not any(isinstance(known, _Filter) for known in handler.filters):
            handler.addFilter(_Filter())
