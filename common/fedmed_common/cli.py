"""The ``fedmed`` command: a table of names, each imported when it is run, so that ``fedmed --help`` answers at once.

Exit codes: 0 done, 1 failed, 2 something the user wrote is wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import click
import typer
from typer.core import TyperGroup

from fedmed_common import logs
from fedmed_common.errors import FedmedError

COMMANDS: dict[str, tuple[str, str]] = {
    "phantom": (
        "fedmed_simulations.phantom.cli:phantom",
        "Write a synthetic federation of hospitals as real DICOM.",
    ),
    "simulate": ("fedmed_simulations.cli:simulate", "Run an experiment file on this machine."),
    "split": (
        "fedmed_simulations.cli_split:split",
        "Show and draw which site has how many patients of what.",
    ),
    "resume": ("fedmed_simulations.cli:resume", "Go on with an interrupted run."),
    "plan": ("fedmed_server.survey.cli:plan_command", "Propose an experiment from a survey's data sheet."),
    "compare": ("fedmed_simulations.compare.cli:compare", "Compare strategies fairly on this machine."),
    "audit": (
        "fedmed_simulations.audit.cli:audit_command",
        "Attack a run by its own settings, and say what its privacy is worth.",
    ),
    "rehearse": (
        "fedmed_simulations.rehearsal.cli:rehearse_command",
        "Rehearse a whole consortium on this machine.",
    ),
    "models list": (
        "fedmed_common.cli_models:list_command",
        "List the architectures, what they cost and what they need.",
    ),
    "models show": ("fedmed_common.cli_models:show_command", "Show one architecture and its settings."),
    "models export": (
        "fedmed_common.cli_models:export_command",
        "Write a trained network as ONNX or TorchScript.",
    ),
    "report": ("fedmed_server.cli_report:report_command", "Draw a run's report.html again."),
    "track": ("fedmed_server.cli_report:track_command", "Bring MLflow up to date with a run."),
    "publish": (
        "fedmed_server.cli_report:publish_command",
        "Register a run's model, with its record, in MLflow.",
    ),
    "launch": ("fedmed_server.deployment.cli:launch", "Start a run in the hospitals."),
    "status": (
        "fedmed_server.deployment.cli:show_status",
        "Show how far the runs in the hospitals are, and who is late.",
    ),
    "log": ("fedmed_server.deployment.cli:show_log", "Print what the server says about a run."),
    "stop": ("fedmed_server.deployment.cli:stop", "Interrupt a run in the hospitals."),
    "sites": (
        "fedmed_server.deployment.cli:show_sites",
        "Show which sites are connected, and why others are not.",
    ),
    "serve": ("fedmed_server.deployment.serve:serve_command", "Run a consortium's server."),
    "health": ("fedmed_server.deployment.cli_health:health_command", "Say whether the server serves."),
    "provision create": (
        "fedmed_server.provision.cli:create_command",
        "Make what a consortium file asks for: authority, server, a kit for each site.",
    ),
    "provision sign": (
        "fedmed_server.provision.cli:sign_command",
        "Certify a site that sent its request.",
    ),
    "provision renew": (
        "fedmed_server.provision.cli:renew_command",
        "Make a new certificate for a site, or for the server.",
    ),
    "provision revoke": ("fedmed_server.provision.cli:revoke_command", "Shut a site out at once."),
    "provision show": ("fedmed_server.provision.cli:show_command", "List the certificates, and what to do."),
    "site init": (
        "fedmed_client.site.cli_join:init_command",
        "Open a kit: make this site's key, and the request to send back.",
    ),
    "site join": (
        "fedmed_client.site.cli_join:join_command",
        "Install the certificate that the coordinator sent.",
    ),
    "site rotate": (
        "fedmed_client.site.cli_join:rotate_command",
        "Make a new key, and the request to have it certified.",
    ),
    "site start": ("fedmed_client.site.cli_start:start_command", "Run this hospital's site."),
    "site stop": ("fedmed_client.site.cli_start:stop_command", "Stop this hospital's site."),
    "site status": ("fedmed_client.site.cli_start:status_command", "Show how this hospital's site is."),
    "site health": (
        "fedmed_client.site.cli_start:health_command",
        "Say whether this hospital's site runs as it should.",
    ),
    "site audit": (
        "fedmed_client.site.cli_start:audit_command",
        "Check that this site's audit log is whole.",
    ),
    "site withdraw": (
        "fedmed_client.site.cli_withdraw:withdraw_command",
        "Leave a patient who withdrew out of all training from now on.",
    ),
    "site ledger": (
        "fedmed_client.site.cli_ledger:ledger_command",
        "Show what was spent here under differential privacy, and what is left.",
    ),
    "site check": (
        "fedmed_client.preflight.cli:check_command",
        "Look at data, machine and the way to the coordinator before taking part.",
    ),
    "site runs": (
        "fedmed_client.link.cli:runs_command",
        "List the experiments that were offered to this site.",
    ),
    "site approve": ("fedmed_client.link.cli:approve_command", "Permit an experiment at this site."),
    "site reject": ("fedmed_client.link.cli:reject_command", "Forbid an experiment at this site."),
    "site deidentify": (
        "fedmed_client.deidentify.cli:deidentify_command",
        "Copy a folder of DICOM without the patients.",
    ),
    "site fetch": (
        "fedmed_client.pacs.cli:fetch_command",
        "Fetch series from the hospital's picture archive.",
    ),
    "site find": ("fedmed_client.pacs.cli:find_command", "List what the picture archive has that fits."),
    "site predict": (
        "fedmed_client.predict.cli:predict_command",
        "Apply a released model to a study, and write DICOM SEG.",
    ),
    "site receive": (
        "fedmed_client.pacs.cli:receive_command",
        "Take what the picture archive or a scanner pushes.",
    ),
    "site scan": (
        "fedmed_client.cli_scan:scan_command",
        "Index a folder of DICOM and list what cannot be used.",
    ),
    "site send": ("fedmed_client.pacs.cli:send_command", "Store files in the picture archive."),
}
"""By command line: the function, and one line of help. A blank separates a group from its command."""

GROUPS: dict[str, str] = {
    "models": "The architectures that can be trained. 'fedmed models' is 'fedmed models list'.",
    "provision": "Certificates and kits of a consortium. 'fedmed provision FILE' is 'fedmed provision create FILE'.",
    "site": "What a hospital runs on its own data.",
}

DEFAULTS: dict[str, str] = {"provision": "create", "models": "list"}
"""By group: the command that is meant where the line names none."""

ALONE = frozenset({"models"})
"""Groups whose command is meant also where nothing follows; the others show their help."""

ENVIRONMENT: dict[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Set before a library is imported that would otherwise call home; a value that the user set stands."""


class LazyCommand(click.Command):
    """Stands in a group for the command that :meth:`load` imports; knows its name and its line of help."""

    def __init__(self, line: str, target: str, help_line: str) -> None:
        super().__init__(line.rpartition(" ")[2], help=help_line)
        self.line, self.target = line, target

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            FedmedError: the package that holds it, or one that it needs, is not installed.
        """
        module, _, attribute = self.target.partition(":")
        try:
            function: Callable[..., None] = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise _explained(error, self.line, module) from error
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name=self.name)(function)
        return typer.main.get_command(app)


class LazyGroup(TyperGroup):
    """A group that imports a command's module only when the command, or its own help, is asked for."""

    def __init__(
        self, name: str, help_line: str, commands: dict[str, click.Command], **settings: Any
    ) -> None:
        super().__init__(
            name=name,
            help=help_line,
            commands=commands,
            no_args_is_help=name not in ALONE,
            rich_markup_mode="rich",
            suggest_commands=False,
            **settings,
        )
        self.default = DEFAULTS.get(name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The group's own options, and the rest; a rest that begins with a file or an option is the default command's."""
        first = args[0] if args else ""
        if not args and self.name in ALONE and self.default:
            args = [self.default]
        elif self.default and first not in self.get_help_option_names(ctx) and re.search(r"^-|[./\\]", first):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` start with, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def main() -> None:
    """Run the command line and exit; every error is one clear message on stderr."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    logs.set_up()
    sys.exit(run(root_command()))


def root_command() -> LazyGroup:
    """``fedmed`` and all that is below it, with nothing of it imported."""
    top: dict[str, click.Command] = {}
    inside: dict[str, dict[str, click.Command]] = {group: {} for group in GROUPS}
    for line, (target, help_line) in COMMANDS.items():
        group, _, name = line.rpartition(" ")
        (inside[group] if group else top)[name] = LazyCommand(line, target, help_line)
    groups = {name: LazyGroup(name, GROUPS[name], commands) for name, commands in inside.items()}
    version = click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Show the version and exit.",
    )
    help_line = "Federated learning for medical imaging."
    return LazyGroup("fedmed", help_line, {**top, **groups}, params=[version])


def run(group: click.Command, arguments: list[str] | None = None) -> int:
    """Run one command line (that of the process by default) and return its exit code."""
    try:
        group.main(arguments, prog_name="fedmed")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except FedmedError as error:
        _show(str(error))
        return error.exit_code
    except Exception as error:
        _show(
            f"fedmed met something it does not know how to handle: {type(error).__name__}: {error}\n"
            "  fix: set FEDMED_DEBUG=1 and run the command again for the traceback"
        )
        return 1
    return 0


def _show(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if os.environ.get("FEDMED_DEBUG", "0") not in {"", "0"}:
        console.print_exception()
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True, highlight=False)


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"fedmed {version('fedmed')}")
        context.exit()


def _explained(error: ModuleNotFoundError, line: str, module: str) -> Exception:
    package = module.partition(".")[0]
    missing = error.name or ""
    if missing == package:
        return FedmedError(
            f"'fedmed {line}' is part of {package}, which is not installed here\n  fix: pip install fedmed"
        )
    if missing.startswith("fedmed_"):
        return error
    name = missing.partition(".")[0]
    return FedmedError(
        f"'fedmed {line}' needs the Python package '{name}', which is not installed here\n  fix: pip install {name}"
    )
