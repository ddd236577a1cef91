"""No patient identifiers in the log: MONAI Label logs metadata of images and labels as they are."""

from __future__ import annotations

import logging
import re

HIDDEN = "***"
_KEYS = (
    r"Patient\w*|OtherPatient\w*|IssuerOfPatientID|AccessionNumber|Study(?:Date|Time|ID|Description)|"
    r"Series(?:Date|Time|Description)|(?:Referring|Performing|Requesting|NameOf\w*)\w*Physician\w*|Institution\w*|"
    r"OperatorsName"
)
_FIELD = re.compile(
    rf"""(?P<key>\b(?:{_KEYS})\b['"]?\s*[:=]\s*)(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^,;}}\]\s]+)"""
)
_UPLOAD = re.compile(r"""(filename=)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def without_identifiers(text: str) -> str:
    """The text with the values of identifying DICOM attributes, and names of uploaded files, replaced."""
    text = _FIELD.sub(lambda match: match["key"] + HIDDEN, text)
    return _UPLOAD.sub(rf"\g<1>{HIDDEN}", text)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # a caller's wrong format string; logging reports it
            return True
        hidden = without_identifiers(text)
        if hidden != text:
            record.msg, record.args = hidden, ()
        return True


def install_log_filter() -> None:
    """Puts the filter on every handler that there is, once."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    for handler in {handler for found in loggers for handler in found.handlers}:
        if not any(isinstance(known, _Filter) for known in handler.filters):
            handler.addFilter(_Filter())
