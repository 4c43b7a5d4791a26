"""``fedmed models``: what can be trained, what it costs, and what it needs of a patch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from fedmed_common.catalogue import ARCHITECTURES, Architecture, Plan
from fedmed_common.errors import ConfigError, FedmedError
from fedmed_common.lookup import find

Patch = Annotated[
    str | None, typer.Option(help="Voxels per axis, as 256,256 or 96,96,96. Absent: one that suits it.")
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
_SIZES = {2: (256, 256), 3: (96, 96, 96)}
_OUTPUTS = 2


def list_command(
    dimensions: Annotated[
        int | None, typer.Option(min=2, max=3, help="Only those that work in 2D, or in 3D.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Only those for this task: segmentation or classification.")
    ] = None,
    patch: Patch = None,
    as_json: Json = False,
) -> None:
    """List the architectures with their parameters, multiply-adds and needs, in their default settings.

    Each is built and counted, which takes half a minute for all of them.
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    wanted = _numbers(patch)
    if task is not None:
        find({name: name for kind in ARCHITECTURES.values() for name in kind.tasks}, task, field="--task")
    asked = [(name, kind) for name, kind in ARCHITECTURES.items() if task is None or task in kind.tasks]
    rows = [
        row
        for name, kind in track(asked, "counting", transient=True, console=Console(stderr=True))
        for row in _rows(name, kind, wanted, strict=False)
        if dimensions in (None, row["dimensions"])
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    for one in sorted({task for row in rows for task in row["tasks"]}, reverse=True):
        table = Table(box=None, header_style="bold", pad_edge=False, title=one, title_justify="left")
        table.add_column("name", no_wrap=True)
        for title in ("D", "parameters", "mult-adds", "at"):
            table.add_column(title, justify="right", no_wrap=True)
        for title in ("sizes", "private"):
            table.add_column(title)
        for row in rows:
            if one in row["tasks"]:
                table.add_row(*_cells(row))
        console.print(table)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        str(row["dimensions"]),
        _short(row["parameters"]),
        _short(row["multiply_adds"]),
        "x".join(map(str, row["patch"])),
        row["sizes"],
        row["private"],
    )


def show_command(
    name: Annotated[str, typer.Argument(help="The architecture, as unet.", show_default=False)],
    patch: Patch = None,
    as_json: Json = False,
) -> None:
    """Show one architecture: where it comes from, its settings, what it costs."""
    kind = find(ARCHITECTURES, name, field="NAME")
    rows = _rows(name, kind, _numbers(patch), strict=True)
    if not rows:
        known = " and ".join(str(number) for number in kind.dimensions)
        raise ConfigError(f"'{name}' works in {known}D", field="--patch", fix="give as many numbers")
    settings = [
        {
            "key": f"model.{key}",
            "default": field.default,
            "choices": choices(field.annotation),
            "meaning": field.description or "",
        }
        for key, field in kind.model_fields.items()
        if key != "name"
    ]
    facts = {
        "lora": bool(kind.attention),
        "onnx": kind.exports,
        "packages": list(kind.packages),
    }
    if as_json:
        about = {
            "name": name,
            "title": kind.title,
            "source": kind.source,
            **facts,
            "settings": settings,
            "figures": rows,
        }
        typer.echo(json.dumps(about, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{name}[/bold]  {kind.title}\n{kind.source}\n", highlight=False)
    for row in rows:
        console.print(
            f"{row['dimensions']}D: {_short(row['parameters'])} parameters, {_short(row['multiply_adds'])} multiply-adds "
            f"at {'x'.join(map(str, row['patch']))}; sizes: {row['sizes']}; patient-level privacy: {row['private']}",
            highlight=False,
        )
    layers = "its attention layers" if kind.attention else "the layers that targets names"
    console.print(f"transfer.lora: {layers}; ONNX: {'yes' if kind.exports else 'no'}", highlight=False)
    if kind.packages:
        console.print("needs: pip install 'fedmed[transformers]'", highlight=False, markup=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("\nkey", "\ndefault", "\nmeaning"):
        table.add_column(title)
    for setting in settings:
        among = f"one of {', '.join(map(str, setting['choices']))}" if setting["choices"] else ""
        meaning = "; ".join(part for part in (str(setting["meaning"]), among) if part)
        table.add_row(*map(escape, (str(setting["key"]), _plain(setting["default"]), meaning)))
    console.print(table)


def export_command(
    model: Annotated[
        Path, typer.Argument(help="As runs/NAME/models/best.safetensors, or runs/NAME.", show_default=False)
    ],
    to: Annotated[
        Path, typer.Argument(help="The file to write, as model.onnx or model.pt.", show_default=False)
    ],
) -> None:
    """Write a trained network as ONNX (.onnx) or TorchScript (.pt), once it gives what PyTorch gives on random images."""
    if to.suffix not in (".onnx", ".pt"):
        raise ConfigError(
            f"'{to.suffix}' is no format that is written", file=to, fix="end the name in .onnx or .pt"
        )
    if not to.absolute().parent.is_dir():
        raise ConfigError("its folder is not there", file=to, fix=f"mkdir -p {to.parent}")
    from fedmed_common.models.export import read_model, write_onnx, write_torchscript

    experiment, network = read_model(model / "models" / "best.safetensors" if model.is_dir() else model)
    (write_onnx if to.suffix == ".onnx" else write_torchscript)(network, experiment, to)
    typer.echo(
        f"{to}: image (batch, {experiment.data.channels}, {', '.join(map(str, experiment.data.patch))}) to logits"
    )
    if experiment.task.crf is not None:
        typer.echo("the conditional random field of [task.crf] is not in it")


def _rows(
    name: str, kind: type[Architecture], patch: tuple[int, ...] | None, *, strict: bool
) -> list[dict[str, Any]]:
    """One for each dimension that the patch, where one is given, has. ``strict``: a patch that does not fit is an error."""
    from fedmed_common.models.figures import figures_of

    rows = []
    for dimensions in kind.dimensions:
        if patch is not None and len(patch) != dimensions:
            continue
        settings = kind()
        sizes = patch or _suitable(settings, dimensions)
        row: dict[str, Any] = {
            "name": name,
            "title": kind.title,
            "tasks": sorted(kind.tasks),
            "dimensions": dimensions,
            "patch": sizes,
            "sizes": settings.sizes(),
        }
        plan = Plan(dimensions=dimensions, in_channels=1, outputs=_OUTPUTS, patch=sizes)  # type: ignore[arg-type]
        try:
            settings.check(plan)
        except ValueError as error:
            if strict:
                raise ConfigError(
                    str(error), field="--patch", fix="choose other sizes, or leave it out"
                ) from None
            rows.append(row | {"parameters": None, "multiply_adds": None, "private": "not at this patch"})
            continue
        try:
            found = figures_of(settings, plan)
        except FedmedError as error:
            rows.append(
                row | {"parameters": None, "multiply_adds": None, "private": str(error).partition("\n")[0]}
            )
            continue
        private = f"no: {found.private}" if found.private else "yes"
        rows.append(
            row | {"parameters": found.parameters, "multiply_adds": found.multiply_adds, "private": private}
        )
    return rows


def _suitable(settings: Architecture, dimensions: int) -> tuple[int, ...]:
    multiple, least = settings.multiple(), settings.least()
    return tuple(
        max(-(-size // multiple) * multiple, -(-least // multiple) * multiple) for size in _SIZES[dimensions]
    )


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in _SIZES or min(numbers) < 1:
        raise ConfigError(f"'{text}' is no patch", field="--patch", fix="two or three numbers, as 256,256")
    return numbers


def _short(number: int | None) -> str:
    """Three digits and a unit: 31.0 M."""
    if number is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def choices(kind: Any) -> list[str | int]:
    """What a setting may be, where its type lists it; else nothing."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [one for part in get_args(kind) for one in choices(part)]


def _plain(value: object) -> str:
    """As one would write it in TOML."""
    if value is None:
        return "-"
    return json.dumps(value)
