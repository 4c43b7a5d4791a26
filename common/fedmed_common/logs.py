"""Logging that shows no patient: paths, DICOM UIDs, names, dates and long numbers are blanked, tracebacks included.

What is told to the person at this machine goes to the terminal, not here: a log may be sent to somebody who helps.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Iterator
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_KEYS = r"patient|accession|issuer|birth|mrn|(?:referring|performing|requesting)physician"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # keys of DICOM and of tables, with their value: PatientName='Doe^Jane', mrn: 4711
        (
            rf"\b((?:{_KEYS})[\w ]{{0,24}})(['\"]?\s*[:=]\s*)('[^']*'|\"[^\"]*\"|[^\s,;)}}\]]+)",
            r"\1\2<patient>",
        ),
        # person names as DICOM writes them: Doe^Jane
        (r"[^\s'\"=(\[^~]+\^[^'\"=,;)\]\n]*", "<name>"),
        (r"[\w.+\-]+@[\w\-]+\.[\w.\-]+", "<address>"),
        # UIDs: six parts or more, or below a root that is used with fewer
        (r"(?<![\d.])(?:(?:1\.2\.840|2\.25)(?:\.\d+)+|[0-2](?:\.\d+){5,})", "<uid>"),
        # source files keep their name, so that a traceback stays of use
        (r"(['\"])[^'\"\n]*[/\\]([\w\-]+\.py)\1", r"\1<path>/\2\1"),
        (r"(['\"])(?!<path>)[^'\"\n/\\]*[/\\][^'\"\n]*\1", r"\1<path>\1"),
        (r"\bfile:/\S+", "<path>"),
        (
            r"(?<![\w/<>])(?:~|\.{1,2})?/(?!/)[^\s'\":,;)\]}>]+(?: [^\s'\":,;)\]}>]*/[^\s'\":,;)\]}>]*)*",
            "<path>",
        ),
        (r"\b[a-z]:\\[^\s'\",;)\]}]+|\\\\[^\s'\",;)\]}]+", "<path>"),
        (r"(?<![\w/<])[\w.\-]+(?:/[\w.\-]+)*\.(?:dcm|ima|nii(?:\.gz)?|png|jpe?g|tiff?)\b", "<path>"),
        # dates as DICOM and as people write them, then numbers long enough to be somebody's
        (r"\b(?:19|20)\d\d-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])\b", "<date>"),
        (r"(?<![\w.])\d{7,}(?![\w.])", "<number>"),
    )
)


def redact(text: str) -> str:
    """``text`` with everything that may point at a patient blanked. Errs on the side of blanking too much."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Redacting(logging.Formatter):
    """Formats as ``inner`` does, after message, arguments, exception and stack have been redacted."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The record as one redacted text; the record itself stays as it is, for other handlers."""
        known = sorted(set(_paths_in(record)), key=len, reverse=True)

        def clean(text: str) -> str:
            for path in known:
                text = text.replace(path, "<path>")
            return redact(text)

        shown = copy.copy(record)
        shown.msg, shown.args = clean(record.getMessage()), None
        shown.exc_info = None
        if record.exc_info:
            shown.exc_text = clean(self.inner.formatException(record.exc_info))
        elif record.exc_text:
            shown.exc_text = clean(record.exc_text)
        if record.stack_info:
            shown.stack_info = clean(record.stack_info)
        return self.inner.format(shown)


def set_up(
    level: int = logging.WARNING, *, stream: TextIO | None = None, also: tuple[str, ...] = ("flwr", "mlflow")
) -> None:
    """Send the log, redacted, to ``stream``: stderr by default.

    Handlers that exist already, on the root and on the loggers named in ``also``, are made to redact as well. A second call
    adds nothing.
    """
    root = logging.getLogger()
    root.setLevel(level)
    if not root.handlers or stream is not None:
        root.addHandler(logging.StreamHandler(stream))
    for logger in (root, *(logging.getLogger(name) for name in also)):
        for handler in logger.handlers:
            if not isinstance(handler.formatter, Redacting):
                handler.setFormatter(Redacting(handler.formatter or logging.Formatter(FORMAT)))


def _paths_in(record: logging.LogRecord) -> Iterator[str]:
    """Paths that are known as such, whatever characters they hold: arguments, and what an OSError names."""
    arguments = record.args.values() if isinstance(record.args, dict) else record.args or ()
    for argument in arguments:
        if isinstance(argument, os.PathLike):
            yield os.fsdecode(argument)
    error = record.exc_info[1] if record.exc_info else None
    while error is not None:
        if isinstance(error, OSError):
            yield from (
                os.fsdecode(name)
                for name in (error.filename, error.filename2)
                if isinstance(name, str | bytes)
            )
        error = error.__cause__ or error.__context__
