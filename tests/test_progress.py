"""Progress is for whoever watches a terminal, after a while, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

import surgeon
from surgeon import progress
from surgeon.progress import length, tracked, working
from tests.nets import Residual, image


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    encoding = "utf-8"  # type: ignore[assignment]
    on: Callable[[], None]

    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> str:
        """Return what was written once it contains a text."""
        end = time.monotonic() + 10
        while text not in self.getvalue():
            assert time.monotonic() < end, f"{text!r} was never shown: {self.getvalue()!r}"
            time.sleep(0.005)
        return self.getvalue()


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "surgeon-progress"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return standard error as a terminal that shows everything at once."""
    shown = Terminal()
    # Not yet: pytest puts a standard error of its own in place before it calls the test.
    shown.on = lambda: monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PAUSE", 0.005)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("SURGEON_PROGRESS", raising=False)
    return shown


def test_shows_what_is_under_way_and_takes_it_away(terminal: Terminal) -> None:
    terminal.on()
    with working("pruning"):
        terminal.wait_for("pruning")
        for at, _ in enumerate(tracked("abc", "scoring")):
            terminal.wait_for(f"{at}/3")
        with working("odd [bold]names[/]"):
            terminal.wait_for("pruning: odd [bold]names[/]")
    assert "pruning: scoring" in terminal.getvalue()
    # The last thing that reaches the terminal clears the line, and shows the cursor again.
    assert terminal.getvalue().endswith("\x1b[2K") and "\x1b[?25h" in terminal.getvalue()
    assert not threads() and not progress._works


def test_nothing_before_two_seconds(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.on()
    monkeypatch.setattr(progress, "PATIENCE", 2.0)
    with working("tracing"):
        assert threads() == ["surgeon-progress"]
    assert terminal.getvalue() == "" and not threads()


@pytest.mark.parametrize("why", ["no terminal", "turned off", "closed", "none"])
def test_nothing_where_nobody_watches(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    terminal.on()
    if why == "turned off":
        monkeypatch.setenv("SURGEON_PROGRESS", "0")
    if why == "no terminal":
        monkeypatch.setattr(terminal, "isatty", lambda: False)
        monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes anything for a terminal
    if why == "closed":
        terminal.close()
    if why == "none":
        monkeypatch.setattr(sys, "stderr", None)
    with working("tracing"):
        assert not threads()
    assert why == "closed" or terminal.getvalue() == ""


def test_verbs_say_what_they_do(terminal: Terminal) -> None:
    terminal.on()
    model, seen = Residual(), []
    # What is measured waits for the line that says so: then that line was there while it was measured.
    hook = model.register_forward_hook(lambda *_: seen.append(terminal.wait_for("tracing")) if not seen else None)
    graph = surgeon.trace(model, image())
    hook.remove()
    assert seen and "tracing" in seen[0]

    def criterion(graph: Any, group: Any) -> torch.Tensor:
        terminal.wait_for("pruning")
        return torch.rand(len(group.units))

    surgeon.prune(model, image(), flops=0.5, criterion=criterion)
    found = surgeon.sensitivity(model, image(), evaluate=lambda m: float(bool(terminal.wait_for("sensitivity"))))
    assert re.search(r"sensitivity.* 5/11", terminal.getvalue()) or "11/11" in terminal.getvalue()
    assert found.base == 1.0 and not threads() and graph.free


def test_scoring_with_data_counts_batches(terminal: Terminal) -> None:
    terminal.on()
    graph = surgeon.trace(Residual(), image())
    data = [(image(), torch.zeros(2, dtype=torch.long))] * 3

    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        terminal.wait_for("/3")
        return torch.nn.functional.cross_entropy(output, labels)

    surgeon.score(graph, "taylor", data=data, loss=loss)
    assert "scoring" in terminal.getvalue() and "scoring: scoring" not in terminal.getvalue()


def test_what_is_measured_is_drawn_once(terminal: Terminal) -> None:
    terminal.on()
    with working("measuring", still=True):
        drawn = terminal.wait_for("measuring")
        time.sleep(0.1)
        assert terminal.getvalue().count("measuring") == drawn.count("measuring") == 1


def test_errors_pass_through(terminal: Terminal) -> None:
    terminal.on()
    with pytest.raises(KeyError), working("outer"), working("inner"):
        terminal.wait_for("outer: inner")
        raise KeyError
    assert not threads() and not progress._works


def test_a_terminal_that_goes_away_stops_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.on()

    def gone(text: str) -> int:
        raise OSError("gone")

    monkeypatch.setattr(terminal, "write", gone)
    with working("tracing"):
        time.sleep(0.05)
    assert not threads()


def test_plain_characters_where_the_encoding_has_no_others(terminal: Terminal) -> None:
    terminal.on()
    terminal.encoding = "latin-1"  # type: ignore[misc]
    with working("counting", 3) as work:
        work.done = 2
        terminal.wait_for("2/3")
    assert terminal.getvalue().isascii()


def test_shown_without_a_terminal_on_demand(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.on()
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    with working("counting", 3, wanted=True) as work:
        work.done = 3
    assert "counting" in terminal.getvalue() and "3/3" in terminal.getvalue() and "\x1b" not in terminal.getvalue()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_processes_show_nothing_and_end(terminal: Terminal) -> None:
    terminal.on()
    with working("outer"):
        terminal.wait_for("outer")
        child = os.fork()
        if not child:
            with working("inner", wanted=False):
                os._exit(0 if not progress._works else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_length() -> None:
    assert length([1, 2]) == 2 and length(iter([1])) is None
    assert list(tracked(iter("ab"), "x")) == ["a", "b"]
