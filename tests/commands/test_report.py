"""How far a long command is, where nobody looks at a terminal."""

from __future__ import annotations

import pytest

from ingest.commands.report import TOLD_EVERY, progress


@pytest.mark.parametrize(("total", "of_all"), [(48_000, " of 48,000"), (None, "")])
def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(capsys, total, of_all):
    now = 0.0
    with progress("replay", total, clock=lambda: now) as show:
        for second in range(12):
            now = float(second)
            show(1000 + second)
    assert capsys.readouterr().err.splitlines() == [
        f"replay: {1000 + second:,}{of_all} files, {second} s" for second in (5, 10)
    ]
    assert TOLD_EVERY == 5


def test_what_is_done_soon_says_nothing_on_its_way(capsys):
    with progress("verify", 3) as show:
        show(3)
    assert capsys.readouterr() == ("", "")
