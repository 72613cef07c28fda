"""Names in tables and messages: shown as they are, never followed."""

from pathlib import Path

import pytest

from qil_jax.errors import message, printable
from qil_jax.programs import ended
from qil_jax.terminal import Table, console

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["[red]apple[/red]", "[/b]", "[link=x]", "a\x1b[31mb", "\udce9", "a\nb", "a\u202eb", "Füchse 狐"]
SHOWN = ["[red]apple[/red]", "[/b]", "[link=x]", r"a\x1b[31mb", r"\udce9", r"a\nb", r"a\u202eb", "Füchse 狐"]


@pytest.mark.parametrize(("name", "shown"), list(zip(NAMES, SHOWN, strict=True)))
def test_cells_are_plain_text(name, shown, capsys):
    table = Table("layer", "name")
    table.add_row("1", name)
    console().print(table)
    assert shown in capsys.readouterr().out
    assert printable(name) == shown


def test_messages_keep_their_lines_only(capsys):
    assert message("a:\n  b\x1b[2J") == "a:\n  b\\x1b[2J"

    def refuse(argv: list[str]) -> int:
        raise FileNotFoundError(2, "No such file", "\x1b]0;owned\x07")

    assert ended(refuse, ["\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_all_tables_are_of_this_kind():
    files = [*(ROOT / "qil_jax").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    others = [str(file.relative_to(ROOT)) for file in files if "rich.table" in file.read_text(encoding="utf-8")]
    assert others == ["qil_jax/terminal.py"]
