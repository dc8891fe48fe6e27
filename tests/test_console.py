"""Hostile text on the terminal."""

import io
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.tree import Tree

from lightning_diffusion.app.output import show, table
from lightning_diffusion.system.console import console, printable

MARKUP = ("[/b]", "[red]x[/red]", "[link=https://e.org]x[/link]", ":smile:", "[", "\\[b]")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 日本, ×", "plain, größer, 日本, ×"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;title\x07\x1b[31m", r"\x1b]0;title\x07\x1b[31m"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("a\u202egnp.exe\u2066\u200f", r"a\u202egnp.exe\u2066\u200f"),
        ("a\u2028b\u2029\u0085", r"a\u2028b\u2029\x85"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\udce9"),
        ("\U000e0041", r"\U000e0041"),
        (12, "12"),
        (10**5000, "<int>"),
    ],
    ids=range(10),
)
def test_every_text_is_one_visible_line(text, shown):
    assert printable(text) == shown


@given(st.text(alphabet=st.characters(), max_size=40), st.integers(1, 30))
def test_no_text_controls_the_terminal(text, most):
    shown = printable(text, most)
    assert len(shown) <= most
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert all(
        unicodedata.category(letter)[0] != "C" or unicodedata.category(letter) in ("Cn", "Co") for letter in shown
    )
    assert printable(shown, most) == shown


def test_long_texts_are_cut():
    assert printable("x" * 500) == "x" * 500
    assert printable("x" * 501) == "x" * 499 + "…"
    assert printable("\n" * 10**6, 5) == "\\n\\n…"


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_printed_as_it_is(text):
    table, tree = Table(text, title=text), Tree(text)
    table.add_row(text)
    tree.add(text)
    file = io.StringIO()
    out = console(file=file, force_terminal=True, color_system="truecolor", width=100)
    out.print(text)
    for part in (table, tree):
        out.print(part)
    assert file.getvalue().startswith(f"{text}\n")
    assert re.sub(r"\x1b\[\d*m", "", file.getvalue()).count(text) == 6
    assert "https" not in text or "\x1b]8" not in file.getvalue()


def test_a_terminal_without_the_letters_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    console().print("3 × 3 – …")
    sys.stdout.flush()
    assert raw.getvalue() == b"3 \\xd7 3 \\u2013 \\u2026\n"


def test_a_progress_bar_with_it_prints_its_words_as_they_are():
    file = io.StringIO()
    out = console(file=file, force_terminal=True, width=60)
    with Progress(TextColumn("{task.description}", markup=False), console=out) as progress:
        progress.add_task("[/b] [red]")
    assert "[/b] [red]" in file.getvalue()


def test_programs_print_tables_in_columns_and_each_text_as_one_visible_line(capsys):
    scores = table("score", "value", right=["value"])
    scores.add_row("fd", "1")
    show(scores, None, f"{'x' * 300} \x1b[31m[b]")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == ["score  value", "fd         1", f"{'x' * 300} \\x1b[31m[b]"]
