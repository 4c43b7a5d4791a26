"""No canary may come through a redacted log, whichever way it went in."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmed_common.logs import redact, set_up

CANARIES = {
    "dicom path": (
        "cannot read /data/hospital/Mueller Hans/IM0001.dcm",
        ["Mueller", "Hans", "IM0001", "hospital"],
    ),
    "quoted folder": ("[Errno 2] No such file or directory: '/data/Mueller Hans'", ["Mueller", "Hans"]),
    "home": ("wrote ~/scans/weiss", ["scans", "weiss"]),
    "relative path": ("skipped weiss_anna/CT/slice7.dcm", ["weiss", "anna", "slice7"]),
    "file address": ("opening file:///mnt/pacs/4711/x", ["pacs", "4711"]),
    "windows path": (r"cannot read C:\PACS\Mueller\1.dcm", ["PACS", "Mueller"]),
    "share": (r"cannot read \\pacs01\archive\Mueller", ["archive", "Mueller"]),
    "path after a colon": ("error:/data/weiss", ["weiss"]),
    "uid": ("series 1.2.840.113619.2.55.3.604688119.971 has a gap", ["113619", "604688119"]),
    "short uid": ("study 1.2.840.99", ["1.2.840"]),
    "uuid uid": ("SOP 2.25.329800735698586629295641978511506172918", ["32980073"]),
    "person name": ("PatientName Mueller^Hans^^Dr.", ["Mueller", "Hans"]),
    "person name in quotes": ("name 'Weiß^Anna Maria'", ["Weiß", "Anna", "Maria"]),
    "key and value": ("PatientID=H-47-11, next", ["H-47-11"]),
    "key and quoted value": ("patient_name: 'Anna Weiss'", ["Anna", "Weiss"]),
    "a dictionary": ("{'PatientID': 'A77', 'MRN': 'B88'}", ["A77", "B88"]),
    "birth date": ("born 19550312", ["19550312"]),
    "birth date as people write it": ("born 1955-03-12", ["1955-03-12"]),
    "medical record number": ("case 0012345678 was seen before", ["12345678"]),
    "address": ("mail hans.mueller@clinic.example", ["mueller", "clinic"]),
}


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    set_up(logging.INFO, stream=stream)
    yield logging.getLogger("fedmed.test"), stream
    root.handlers[:] = before
    root.setLevel(level)
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize("case", CANARIES)
@pytest.mark.parametrize("way", ["message", "argument", "exception", "cause"])
def test_a_canary_does_not_come_through(case: str, way: str, log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    text, secrets = CANARIES[case]
    if way == "message":
        logger.warning(text.replace("%", "%%"))
    elif way == "argument":
        logger.warning("while reading: %s", text)
    else:
        try:
            _fail(text, nested=way == "cause")
        except (ValueError, RuntimeError):
            logger.exception("an order failed")
    written = stream.getvalue()
    assert written
    assert not [secret for secret in secrets if secret in written], written


def _fail(text: str, *, nested: bool) -> None:
    try:
        raise ValueError(text)
    except ValueError as error:
        if nested:
            raise RuntimeError("could not go on") from error
        raise


def test_paths_given_as_arguments_are_blanked_whole(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.info("scanned %s", Path("/data/Doe Jane (2nd visit), left"))
    assert "scanned <path>" in stream.getvalue()
    assert "Jane" not in stream.getvalue()
    assert "left" not in stream.getvalue()


def test_the_file_of_an_oserror_is_blanked(log: tuple[logging.Logger, io.StringIO], tmp_path: Path) -> None:
    logger, stream = log
    patient = "Jane"
    try:
        (tmp_path / f"Doe {patient}").read_bytes()
    except OSError:
        logger.exception("gone")
    assert patient not in stream.getvalue()
    assert "FileNotFoundError" in stream.getvalue()


def test_what_helps_is_kept() -> None:
    kept = "round 3 of 20: dice/liver 0.912, loss 0.1234567, 2 of 3 sites, flwr 1.41.0, 10.0.0.12:9092"
    assert redact(kept) == kept
    frame = '  File "/opt/fedmed/client/fedmed_client/train.py", line 12, in train'
    assert redact(frame) == '  File "<path>/train.py", line 12, in train'


def test_the_id_of_a_run_is_kept_and_nothing_that_only_begins_like_one() -> None:
    kept = "run 20261121-112651-name_of-it.2-791b is started; '20261121-112651-a-0000'"
    assert redact(kept) == kept
    for text in (
        "20261121", "2026-11-21", "20261121-", "20261121-Doe", "20261121-112651", "20261121-112651-Doe",
        "20261121-11265-a-791b", "20261121-992651-a-791b", "20261121-112651-a-791b9", "20261121-112651-a-791b-Doe",
        "Doe-20261121-112651-a-791b", "19551121-112651-a-791b",
    ):  # fmt: skip
        assert "<date>" in redact(f"on {text}, at once"), text


def test_setting_up_twice_writes_a_line_once(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    set_up(logging.INFO)
    logger.info("once")
    assert stream.getvalue().count("once") == 1


def test_a_handler_of_another_library_gets_redacted_records(log: tuple[logging.Logger, io.StringIO]) -> None:
    seen: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    logger = logging.getLogger("fedmed.test.other_library")
    keep = Keep()
    logger.addHandler(keep)
    try:
        _fail("PatientName=Doe^Jane", nested=False)
    except ValueError:
        logger.exception("read %s", Path("/a/b"), stack_info=True)
    finally:
        logger.removeHandler(keep)
    assert seen[0].getMessage() == "read <path>"
    assert (seen[0].args, seen[0].exc_info) == (None, None)
    assert "Jane" not in str(seen[0].exc_text)
    assert "ValueError" in str(seen[0].exc_text)


def test_a_message_that_does_not_fit_its_arguments_is_still_written(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = log
    wrong = "%d of %s"
    logger.info(wrong, "/data/weiss")
    assert "%d of %s" in stream.getvalue()
    assert "weiss" not in stream.getvalue()
