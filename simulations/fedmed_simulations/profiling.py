"""Where a simulated run's time goes: by phase on the terminal, and by function on a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fedmed_common.errors import ConfigError
from fedmed_common.files import write_atomically

if TYPE_CHECKING:
    from pyinstrument.frame import Frame

PAGE = "profile.html"
_INTERVAL_SECONDS = 0.001
_BEFORE = "before and after the rounds"
_PHASES: Mapping[tuple[str, str], str] = {
    ("fedmed_client/train.py", "_gradients"): "training: forward and backward",
    ("data/ahead.py", "__next__"): "training: waiting for batches",
    ("fedmed_client/train.py", "step"): "training: clipping and optimizer",
    ("fedmed_client/private.py", "train"): "training: private steps",
    ("fedmed_client/train.py", "train"): "training: the rest",
    ("fedmed_client/evaluate.py", "measurements"): "evaluation",
    ("fedmed_client/app.py", "_answer"): "sites: the rest",
    ("fedmed_common/wire.py", "pack_order"): "wire",
    ("fedmed_common/wire.py", "unpack_order"): "wire",
    ("fedmed_common/wire.py", "pack_reply"): "wire",
    ("fedmed_common/wire.py", "unpack_reply"): "wire",
    ("fedmed_server/gate.py", "admit"): "server: gate",
    ("fedmed_server/rounds.py", "run_round"): "server: the rest",
    ("fedmed_strategies/server_half.py", "add"): "server: aggregation",
    ("fedmed_strategies/server_half.py", "finish"): "server: aggregation",
    ("fedmed_server/state.py", "save_state"): "server: checkpoint",
}
"""By the file and name of a function, what is done in it and in whatever it calls that is not named here."""


@contextmanager
def profiled(folder: Path, console: Console) -> Iterator[None]:
    """Look every millisecond at what this thread does; then say so, and write the page into the run's ``folder``.

    Raises:
        ConfigError: pyinstrument is not installed.
    """
    try:
        from pyinstrument import Profiler
        from pyinstrument.renderers import HTMLRenderer
    except ImportError:
        raise ConfigError("--profile needs pyinstrument", fix="pip install 'fedmed[profile]'") from None
    profiler = Profiler(interval=_INTERVAL_SECONDS, async_mode="disabled")
    profiler.start()
    try:
        yield
    finally:
        session = profiler.stop()
        root = session.root_frame()
        if root is not None:
            console.print(_table(phases(root)))
            write_atomically(folder / PAGE, HTMLRenderer().render(session).encode())
            console.print(f"profile: {folder / PAGE}", soft_wrap=True, highlight=False)


def phases(root: Frame) -> dict[str, float]:
    """Seconds by phase, the longest first; together the whole time."""
    seconds = defaultdict[str, float](float)
    waiting = [(root, _BEFORE)]
    while waiting:
        frame, phase = waiting.pop()
        phase = _phase_of(frame) or phase
        seconds[phase] += frame.time - sum(child.time for child in frame.children)
        waiting += [(child, phase) for child in frame.children]
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _phase_of(frame: Frame) -> str | None:
    path = Path(frame.file_path or "")
    return _PHASES.get(("/".join(path.parts[-2:]), frame.function))


def _table(seconds: Mapping[str, float]) -> Table:
    total = sum(seconds.values())
    table = Table(title="where the time went")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for phase, value in seconds.items():
        table.add_row(phase, f"{value:.2f}", f"{value / total:.1%}")
    table.add_row("all", f"{total:.2f}", "100.0%", style="bold")
    return table
