"""The command line: quick to answer, one message an error, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest

from fedmed_common import cli
from fedmed_common.errors import ConfigError, FedmedError, Interrupted, QuorumError

HEAVY = {
    "torch",
    "monai",
    "flwr",
    "mlflow",
    "pydicom",
    "highdicom",
    "ray",
    "scipy",
    "skimage",
    "matplotlib",
    "numpy",
}


def _modules_after(arguments: list[str]) -> tuple[int, str, set[str]]:
    """Exit code, output and imported top-level modules of ``fedmed ARGUMENTS`` in a process of its own."""
    code = (
        "import json, sys\n"
        "from fedmed_common.cli import root_command, run\n"
        f"exit_code = run(root_command(), {arguments!r})\n"
        "print('\\n' + json.dumps([exit_code, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    output, _, last = done.stdout.rstrip().rpartition("\n")
    exit_code, modules = json.loads(last)
    return exit_code, output, set(modules)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["site", "--help"], ["provision", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    exit_code, output, modules = _modules_after(arguments)
    assert exit_code == 0
    assert "fedmed" in output
    assert not modules & HEAVY
    assert not {name for name in modules if name.startswith("fedmed_")} - {"fedmed_common"}


def test_help_lists_every_command_and_group() -> None:
    _, output, _ = _modules_after(["--help"])
    for line in cli.COMMANDS:
        assert line.split()[0] in output


@pytest.mark.parametrize("line", cli.COMMANDS)
def test_every_command_answers_help(line: str) -> None:
    exit_code, output, _ = _modules_after([*line.split(), "--help"])
    assert exit_code == 0
    assert f"fedmed {line}" in output


def test_the_installed_command_is_this_one() -> None:
    code = "from fedmed_common.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"fedmed ")


def test_libraries_are_told_not_to_call_home() -> None:
    code = (
        "import atexit, json, os\n"
        "atexit.register(lambda: print(json.dumps(dict(os.environ))))\n"
        "from fedmed_common.cli import main\n"
        "main()\n"
    )
    mine = {name: value for name, value in os.environ.items() if name not in cli.ENVIRONMENT} | {
        "DO_NOT_TRACK": "mine"
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, check=True, env=mine
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert {name: told[name] for name in cli.ENVIRONMENT} == cli.ENVIRONMENT | {"DO_NOT_TRACK": "mine"}


def _failing(error: BaseException) -> click.Command:
    @click.command()
    def fail() -> None:
        raise error

    return cli.LazyGroup("fedmed", "Always fails.", {"fail": fail})


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (
            ConfigError("is missing", file="x.toml", field="rounds", fix="add it"),
            2,
            "x.toml: rounds: is missing\n  fix: add it",
        ),
        (QuorumError("2 of 4 sites answered"), 1, "2 of 4 sites answered"),
        (FedmedError("[bold] is no markup"), 1, "[bold] is no markup"),
        (Interrupted("stopped after round 3"), 130, "stopped after round 3"),
        (RuntimeError("out of cheese"), 1, "RuntimeError: out of cheese"),
    ],
)
def test_an_error_is_one_message(
    error: Exception,
    exit_code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEDMED_DEBUG", raising=False)
    assert cli.run(_failing(error), ["fail"]) == exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert "Traceback" not in shown.err


def test_the_traceback_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMED_DEBUG", "1")
    assert cli.run(_failing(RuntimeError("out of cheese")), ["fail"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_has_its_own_exit_code() -> None:
    assert cli.run(_failing(KeyboardInterrupt()), ["fail"]) == 130


def test_a_misspelt_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.root_command(), ["simulat"]) == 2
    assert "simulate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"), [(["a.toml"], "create"), (["--out", "x"], "create"), (["sign"], "sign")]
)
def test_a_group_s_default_is_meant_where_the_line_names_no_command(
    words: list[str], meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, list[str]]] = []
    commands: dict[str, click.Command] = {name: _noting(name, seen) for name in ("create", "sign")}
    monkeypatch.setitem(cli.DEFAULTS, "some", "create")
    group = cli.LazyGroup("fedmed", "All.", {"some": cli.LazyGroup("some", "Some.", commands)})
    assert cli.run(group, ["some", *words]) == 0
    assert seen == [(meant, [word for word in words if word != meant])]


def _noting(name: str, seen: list[tuple[str, list[str]]]) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True})
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def note(words: tuple[str, ...]) -> None:
        seen.append((name, list(words)))

    return note


def test_a_default_is_a_command_of_its_group() -> None:
    assert {f"{group} {name}" for group, name in cli.DEFAULTS.items()} <= cli.COMMANDS.keys()


def test_a_package_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "elsewhere", ("fedmed_elsewhere.cli:command", "Not here."))
    assert cli.run(cli.root_command(), ["elsewhere"]) == 1
    shown = capsys.readouterr().err
    assert "part of fedmed_elsewhere, which is not installed here" in shown
    assert "pip install fedmed" in shown
