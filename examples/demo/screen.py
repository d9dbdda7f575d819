"""What the visitor sees: in colour and moving on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Screen", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-=+*#@"


class Screen:
    """Prints the story of the demo on stdout."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._plain = self._console.options.ascii_only
        self._num_stages = 0

    @property
    def bars(self) -> str:
        """Characters of a sparkline, low to high."""
        return _PLAIN_BARS if self._plain else _BARS

    def stage(self, title: str) -> None:
        """Begin a numbered stage."""
        self._num_stages += 1
        self._console.print()
        characters = "-" if self._plain else "─"
        text = f"[bold cyan]{self._num_stages}. {title}[/]"
        self._console.print(Rule(text, align="left", characters=characters))

    def say(self, text: str) -> None:
        """Print a sentence; markup counts."""
        self._console.print(text)

    def proven(self, text: str) -> None:
        """Print a claim that was just checked."""
        self._console.print(f"[bold green]{'ok' if self._plain else '✓'}[/] {text}")

    def verbatim(self, text: str) -> None:
        """Print text of somebody else as it is, indented."""
        for line in text.rstrip("\n").splitlines():
            self._console.print(f"    {line}", markup=False, soft_wrap=True)

    def command(self, line: str, output: str) -> None:
        """Print a command and what it answered."""
        self._console.print(f"  [bold]$ {line}[/]", soft_wrap=True)
        self.verbatim(output)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for header in headers:
            table.add_column(header, no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def curves(self, curves: Mapping[str, tuple[int, Sequence[float]]]) -> None:
        """Draw curves on one scale, one line each, aligned by the step they begin with."""
        low = min(min(values) for _, values in curves.values())
        high = max(max(values) for _, values in curves.values())
        width = max(map(len, curves))
        for name, (first, values) in curves.items():
            line = " " * (first - 1) + sparkline(values, low, high, self.bars)
            self._console.print(f"  {name.ljust(width)}  [cyan]{line}[/]", soft_wrap=True)
        self._console.print(f"  {' ' * width}  loss, {high:.2f} down to {low:.2f}")

    def closing(self, title: str, lines: Sequence[str]) -> None:
        """Print the summary."""
        self._console.print()
        mark = "*" if self._plain else "•"
        text = Table.grid(padding=(0, 1))
        for line in lines:
            text.add_row(mark, line)
        self._console.print(Panel(text, title=title, title_align="left", border_style="green"))

    def failed(self, text: str) -> None:
        """Print why the demo failed."""
        self._console.print("[bold red]FAILED[/]", end=" ")
        self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, title: str, num_steps: int) -> Iterator[Callable[[int, float], None]]:
        """Show steps and loss while a job runs; yields what is to be called after each step."""
        if not self._console.is_terminal:
            yield lambda step, loss: self._line(title, step, num_steps, loss)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(title, total=num_steps, loss="starting two ranks")
            yield lambda step, loss: bars.update(task, completed=step, loss=f"loss {loss:.4f}")

    def _line(self, title: str, step: int, num_steps: int, loss: float) -> None:
        if step % max(1, num_steps // 4) == 0:
            self._console.print(f"  {title}: step {step} of {num_steps}, loss {loss:.4f}")


def sparkline(values: Sequence[float], low: float, high: float, bars: str = _BARS) -> str:
    """Return one character per value, from `bars[0]` at `low` to the last at `high`."""
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] for value in values)
