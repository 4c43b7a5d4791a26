"""Logging that shows no patient: paths, DICOM UIDs, names, dates and long numbers are blanked, tracebacks included.

What is told to the person at this machine goes to the terminal, not here: a log may be sent to somebody who helps.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_KEYS = r"patient|accession|issuer|birth|mrn|(?:referring|performing|requesting)physician"
_RUN_ID = r"(?<![\w\-])20\d{6}-(?:[01]\d|2[0-3])[0-5]\d[0-5]\d-[a-z0-9][\w.\-]{0,63}-[0-9a-f]{4}(?![\w\-])"
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
        # dates as DICOM and as people write them, but for the ids of runs; then numbers long enough to be somebody's
        (rf"(?!{_RUN_ID})\b(?:19|20)\d\d-?(?:0[1-9]|1[0-2])-?(?:0[1-9]|[12]\d|3[01])\b", "<date>"),
        (rf"(?!{_RUN_ID})(?<![\w.])\d{{7,}}(?![\w.])", "<number>"),
    )
)


def redact(text: str) -> str:
    """``text`` with everything that may point at a patient blanked. Errs on the side of blanking too much."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def set_up(level: int = logging.WARNING, *, stream: TextIO | None = None) -> None:
    """Redact every log record of this process as it is made, whichever library makes it and whichever handler takes it.

    Records from ``level`` on go to ``stream`` (stderr where None), unless the process has handlers of its own already.
    """
    logging.setLogRecordFactory(_redacted_record)
    root = logging.getLogger()
    root.setLevel(level)
    if not root.handlers or stream is not None:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(FORMAT))
        root.addHandler(handler)


def _redacted_record(*arguments: Any, **more: Any) -> logging.LogRecord:
    """A record whose message, exception and stack are redacted text, with nothing behind them."""
    record = logging.LogRecord(*arguments, **more)
    known = sorted(set(_paths_in(record)), key=len, reverse=True)

    def clean(text: str) -> str:
        for path in known:
            text = text.replace(path, "<path>")
        return redact(text)

    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        message = f"{record.msg} {record.args}"
    record.msg, record.args = clean(message), None
    if record.exc_info:
        record.exc_text = clean("".join(traceback.format_exception(*record.exc_info)).rstrip())
        record.exc_info = None
    if record.stack_info:
        record.stack_info = clean(record.stack_info)
    return record


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
