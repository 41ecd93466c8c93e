"""What people see."""

from __future__ import annotations

import io

import pytest

from device_client.console import Console, printable
from shared.byte_sizes import format_bytes, parse_bytes
from shared.errors import InvalidRequest


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_off_a_terminal_progress_is_a_line_every_few_seconds_with_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Console(stream=stream, clock=clock).progress("Tuning", 100, "steps") as bar:
        for step in range(1, 13):
            clock.now = float(step)
            bar.update(step * 5, note=f"loss {step}")
    assert stream.getvalue().splitlines() == [
        "Tuning: 5 of 100 steps, loss 1",
        "Tuning: 30 of 100 steps, 5 steps/s, 14 s left, loss 6",
        "Tuning: 55 of 100 steps, 5 steps/s, 9 s left, loss 11",
        "Tuning: 60 of 100 steps, 5 steps/s, 8 s left, loss 12",
    ]


def test_bytes_are_shown_in_binary_units() -> None:
    stream, clock = io.StringIO(), Clock()
    with Console(stream=stream, clock=clock).progress("Pulling", 4 * 2**20, "B") as bar:
        bar.advance(2**20)
        clock.now = 10.0
        bar.advance(2**20)
    assert "Pulling: 2.0 MiB of 4.0 MiB, 102.4 KiB/s, 20 s left" in stream.getvalue()


def test_work_resumed_in_the_middle_does_not_count_into_the_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    with Console(stream=stream, clock=clock).progress("Tuning", 1000, "steps") as bar:
        clock.now = 1.0
        bar.update(900)
        clock.now = 11.0
        bar.advance(10)
    assert "910 of 1000 steps, 1 steps/s, 90 s left" in stream.getvalue()


def test_quiet_shows_warnings_and_errors_only() -> None:
    stream = io.StringIO()
    console = Console(is_quiet=True, stream=stream)
    console.say("hello")
    console.table("title", ["a"], [["b"]])
    with console.progress("Tuning", 10, "steps") as bar:
        bar.advance()
        bar.update(3, note="x")
    console.warn("look out")
    console.error("broken")
    assert stream.getvalue() == "Warning: look out\nError: broken\n"


def test_brackets_of_users_texts_are_not_taken_for_markup() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    console.say("[bold]x[/bold] :smile:")
    console.table("[red]t", ["[c]"], [["[cell]"]])
    shown = stream.getvalue()
    for text in ("[bold]x[/bold] :smile:", "[red]t", "[c]", "[cell]"):
        assert text in shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_no_text_commands_the_terminal(stream_type: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """A title set, a screen cleared, a line overwritten, a colour by C1, a name written backwards."""
    monkeypatch.setenv("TERM", "xterm")
    evil = "a\x1b]0;owned\x07b\x1b[2Jc\rd\x9b31me\u202ef\x7f\x00\x08"
    stream = stream_type()
    console = Console(stream=stream, has_color=False)
    console.say(evil)
    console.warn(evil)
    console.error(evil)
    console.table(evil, [evil], [[evil]])
    with console.progress(evil, 2, "B") as bar:
        bar.update(1, note=evil)
    shown = stream.getvalue()
    for command in ("\x1b]", "\x1b[2J", "\x9b", "\x07", "\u202e", "c\rd", "\x7f", "\x00", "\x08"):
        assert command not in shown
    assert shown.count("a]0;ownedb[2Jcd31mef") >= 6


def test_lines_tabs_and_other_scripts_stay() -> None:
    text = "found\n\tneeded: Größe · 日本 · עברית · 👩‍👧"
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("500MB", 500_000_000),
        ("64k", 64_000),
        ("1.5 KiB", 1536),
        ("7", 7),
        ("2TB", 2 * 10**12),
        ("10b", 10),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "1 GiB x", "1e9", "NaN", "5PB"])
def test_other_sizes_are_wrong_calls(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (3 * 2**40, "3.0 TiB")]
)
def test_sizes_are_shown_in_the_largest_unit(size: int, text: str) -> None:
    assert format_bytes(size) == text
