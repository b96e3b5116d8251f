"""The command ``surgeon``: its commands, its exit status, and how it says what went wrong."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from surgeon.cli import apply, deploy, look, plans, prune
from surgeon.cli.answer import Answer, dumps, note, write
from surgeon.errors import SurgeonError, VerificationError

REFUSED, USAGE, DISPROVED, FAILED = 1, 2, 3, 4

ABOUT = """
[bold]Exit status[/bold]

0 done; 1 refused, with the reason on standard error; 2 wrong usage; 3 a small model that does not compute what it \
should; 4 an unexpected error, with its traceback; 130 interrupted

[bold]Examples[/bold]

surgeon inspect torchvision:resnet50

surgeon prune torchvision:resnet50 --flops 0.5 --out small/

surgeon verify torchvision:resnet50 small/

surgeon COMMAND --help has examples of each command.
"""


class Commands(TyperGroup):
    """Commands whose answers are printed here, and whose errors become an exit status."""

    as_json = False

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command line; wrong usage is a document too where ``--json`` is asked for."""
        given = list(sys.argv[1:] if args is None else args)
        self.as_json = "--json" in given
        if not self.as_json:
            return super().main(given, *rest, **options)
        try:
            status = super().main(given, *rest, **{**options, "standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            print(dumps({"error": "UsageError", "message": error.format_message()}))
            note(f"error: {error.format_message()}")
            sys.exit(USAGE)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> None:
        """Run a command and print its answer; what models print while it runs is kept out of a document."""
        stdout = sys.stdout
        try:
            with redirect_stdout(sys.stderr) if self.as_json else nullcontext():
                answer = super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # of the parser
                raise
            self._fail(error)
        if isinstance(answer, Answer):
            write(answer, stdout, self.as_json)

    def _fail(self, error: Exception) -> NoReturn:
        if self.as_json:
            print(dumps({"error": type(error).__name__, "message": str(error)}))
        if isinstance(error, SurgeonError):
            note(f"error: {error}")
            raise typer.Exit(DISPROVED if isinstance(error, VerificationError) else REFUSED)
        note("".join(traceback.format_exception(error)).rstrip())
        note("error: unexpected, in surgeon or in code that the model runs; the traceback is above")
        raise typer.Exit(FAILED)


def _version(asked: bool) -> None:
    if not asked:
        return
    try:
        print(version("channel-surgeon"))
    except PackageNotFoundError:
        print("not installed")
    raise typer.Exit()


app = typer.Typer(
    cls=Commands,
    name="surgeon",
    help="Make trained PyTorch models smaller: cut channels, heads and units, and prove the cut right.",
    epilog=ABOUT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def surgeon(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None: ...


def _add(to: typer.Typer, command: Callable[..., Answer], examples: str) -> None:
    """Add a command; each paragraph of its help is one line, to be broken where the terminal ends."""
    help = "\n\n".join(" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n"))
    to.command(help=help, epilog="[bold]Examples[/bold]\n\n" + "\n\n".join(examples.strip().splitlines()))(command)


plan = typer.Typer(help="Read plans and compare them.", no_args_is_help=True)
_add(app, look.inspect, look.INSPECT)
_add(app, prune.prune, prune.EXAMPLES)
_add(app, apply.apply, apply.EXAMPLES)
_add(app, look.verify, look.VERIFY)
_add(app, look.report, look.REPORT)
_add(app, deploy.export, deploy.EXPORT)
_add(app, deploy.bench, deploy.BENCH)
_add(plan, plans.show, plans.SHOW)
_add(plan, plans.diff, plans.DIFF)
app.add_typer(plan, name="plan")


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="surgeon")
