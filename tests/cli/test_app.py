"""Help, exit status, and a real process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import pytest
import typer

import surgeon as api
from surgeon.cli import answer, look
from surgeon.cli.answer import dumps
from surgeon.cli.app import app
from tests.cli.conftest import Surgeon

COMMANDS = ["inspect", "prune", "apply", "verify", "report", "export", "bench", "plan show", "plan diff"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERMINAL_WIDTH", "120")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(surgeon: Surgeon, command: str) -> None:
    done = surgeon(*command.split(), "--help")
    assert done.exit_code == 0
    assert f"surgeon {command} " in done.stdout.partition("Examples")[2] and "--json" in done.stdout


def test_help_documents_commands_and_statuses(surgeon: Surgeon) -> None:
    text = " ".join(surgeon("--help").stdout.split())
    assert all(f" {command.split()[0]} " in text for command in COMMANDS)
    assert "0 done; 1 refused" in text and "2 wrong usage; 3 a small model" in text and "4 an unexpected error" in text


def test_examples_of_the_help_are_command_lines() -> None:
    """Every option that an example shows exists."""
    for command in COMMANDS:
        held = typer.main.get_command(app)
        for name in command.split():
            held = held.commands[name]  # type: ignore[attr-defined]
        options = {option for parameter in held.params for option in (*parameter.opts, *parameter.secondary_opts)}
        lines = [line for line in (held.epilog or "").splitlines() if line.startswith("surgeon")]
        assert lines and all(line.startswith(f"surgeon {command} ") for line in lines)
        used = {word for line in lines for word in line.split() if word.startswith("--")}
        assert used <= options, command


def test_the_version(surgeon: Surgeon) -> None:
    assert surgeon("--version").stdout.strip() == version("channel-surgeon") == api.__version__


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("prun",), "Did you mean 'prune'?"),
        (("prune", "nets:Net"), "Missing option '--out'"),
        (("inspect", "nets:Net", "--inputs", "1"), "No such option: --inputs"),
        (("plan", "dif"), "Did you mean 'diff'?"),
    ],
)
def test_wrong_usage(surgeon: Surgeon, words: tuple[str, ...], part: str) -> None:
    done = surgeon(*words)
    assert done.exit_code == 2 and done.stdout == "" and part in " ".join(done.stderr.split())
    done = surgeon(*words, "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 2 and told["error"] == "UsageError" and part in told["message"]


@pytest.mark.parametrize("asked", [(), ("--json",)])
def test_unexpected_errors_show_where(
    surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise LookupError("odd")

    monkeypatch.setattr(look, "trace", fail)
    done = surgeon("inspect", "nets:Net", "--input", "1x3x6x6", *asked)
    assert done.exit_code == 4 and "Traceback" in done.stderr and "LookupError: odd" in done.stderr
    if asked:
        assert json.loads(done.stdout) == {"error": "LookupError", "message": "odd"}


def test_what_the_system_refuses(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "small")

    monkeypatch.setattr(look, "trace", fail)
    done = surgeon("inspect", "nets:Net", "--input", "1x3x6x6", "--json")
    assert done.exit_code == 1 and "Traceback" not in done.stderr
    assert json.loads(done.stdout) == {"error": "PermissionError", "message": "[Errno 13] Permission denied: 'small'"}


def test_an_interrupt_has_its_usual_status(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "trace", interrupted)
    assert surgeon("inspect", "nets:Net", "--input", "1x3x6x6").exit_code == 130


def test_documents_have_no_infinities() -> None:
    assert json.loads(dumps({"a": math.inf, "b": [math.nan, 1.5], 3: Path("x")})) == {
        "a": None,
        "b": [None, 1.5],
        "3": "x",
    }


@pytest.mark.parametrize("watched", [True, False])
def test_progress_is_shown_to_who_watches(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    shown = StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: watched, raising=False)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with answer.step("tracing"):
        pass
    assert ("tracing" in shown.getvalue()) is watched


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(api.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_entry_point_is_declared() -> None:
    project = Path(api.__file__).parents[1] / "pyproject.toml"
    if not project.exists():
        pytest.skip("an installed package")
    assert '[project.scripts]\nsurgeon = "surgeon.cli:main"' in project.read_text(encoding="utf-8")


def test_a_process_of_its_own(folder: Path) -> None:
    """As the console script does, a process finds modules in the current folder; the script's own folder is not it."""
    script = ("-c", "import sys; sys.path[0] = '/nowhere'; from surgeon.cli import main; main()")
    words = ("prune", "nets:Net", "--input", "1x3x6x6", "--flops", "0.5", "--no-onnx", "--out", "small")
    done = run(folder, *script, *words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["totals"]["flops"]["after"] <= 0.5 * told["totals"]["flops"]["before"] and "making a net" in done.stderr
    done = run(folder, "-m", "surgeon", "verify", "nets:Net", "small", "--input", "1x3x6x6")
    assert done.returncode == 0 and "masked original = small model" in done.stdout, done.stderr
    done = run(folder, "-m", "surgeon", *words)
    assert done.returncode == 1 and done.stdout == "" and "holds model.safetensors already" in done.stderr


def test_the_package_does_not_import_its_command_line(folder: Path) -> None:
    done = run(folder, "-c", "import sys, surgeon; print('typer' in sys.modules, 'surgeon.cli' in sys.modules)")
    assert done.stdout.strip() == "False False", done.stderr
