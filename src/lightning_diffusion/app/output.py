"""Console output of the programs: plain tables and unwrapped lines."""

from collections.abc import Collection

from rich.table import Table

from lightning_diffusion.system.console import console, printable

MOST = 1500  # characters of a line


def table(*columns: str, right: Collection[str] = ()) -> Table:
    """An empty table without lines. Without columns it has no header, and its rows make the columns.

    Args:
        right: columns that are aligned to the right.
    """
    made = Table(show_header=bool(columns), box=None, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(printable(column), justify="right" if column in right else "left")
    return made


def show(*parts: Table | str | None) -> None:
    """Prints tables and texts in order; None prints nothing.

    Each text is one visible line, which is not wrapped: a path stays whole.
    """
    terminal = console()
    for part in parts:
        if isinstance(part, str):
            terminal.print(printable(part, MOST), soft_wrap=True)
        elif part is not None:
            terminal.print(part)
