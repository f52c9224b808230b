"""Arguments -> a command -> an exit code. The only place where an error becomes a line on standard error."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any

import typer

from prunecli import __version__
from prunecli.arguments import nearest
from prunecli.cli import (
    compress_report,
    doctor,
    export,
    finetune,
    init,
    inspect,
    methods,
    prune,
    schedules,
    score,
    sweep,
    train,
)
from prunecli.cli.completion import IN_BASH, VARIABLE, behind_colon, mend_words
from prunecli.cli.help import HelpedCommand, HelpedGroup
from prunecli.cli.signals import asked_to_end
from prunecli.cli.streams import quietly_closed, say, say_error
from prunecli.cli.voices import in_own_name, may_speak, refuse_alone
from prunecli.errors import InputError, PeerError, PruneError
from prunecli.memory import is_for_want_of_memory
from prunecli.pipeline.processes import Dismissed, started

_QUOTED = re.compile(r"'([^']*)'")
_NO_CHOICE = re.compile(r"'([^']*)' is not one of (.*)")
INTERNAL_ERROR = 1
INTERRUPTED = 130
_FULL = (
    "The memory is full; nothing was left half written. Use a smaller `--batch-size`, a machine with more, "
    "or `--streaming`, where the command has it."
)

app = typer.Typer(
    name="prunecli",
    cls=HelpedGroup,
    help="Make PyTorch networks physically smaller, and prove it.",
    epilog="Start with `prunecli inspect CKPT`. `prunecli COMMAND --help` shows examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for file in (
    inspect,
    init,
    score,
    prune,
    finetune,
    train,
    sweep,
    export,
    methods,
    schedules,
    compress_report,
    doctor,
):
    app.command(file.NAME, cls=HelpedCommand, epilog=file.EXAMPLES)(file.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunecli {__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Make PyTorch networks physically smaller, and prove it."""
    refuse_alone(context.invoked_subcommand)


def main() -> None:
    """Run the command line and exit."""
    heard: list[int] = []
    try:
        with quietly_closed(), asked_to_end(heard):
            code = _complete_in_bash() if os.environ.get(VARIABLE) == IN_BASH else run(sys.argv[1:])
    except KeyboardInterrupt:  # once more, while the first one was being told
        code = INTERRUPTED
    sys.exit(128 + heard[0] if heard else code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(arguments, prog_name="prunecli", standalone_mode=False)
    except PruneError as error:
        return _failed(str(error), error.exit_code, arguments, isinstance(error, PeerError))
    except Dismissed:
        return 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if _is_click_error(error):
            return _misused(error)
        if is_for_want_of_memory(error):
            return _failed(_FULL, INTERNAL_ERROR, arguments)
        if isinstance(error, OSError) and error.filename is not None:  # nobody foresaw that path
            reason = (error.strerror or str(error)).lower()
            return _failed(f"`{error.filename}` cannot be used: {reason}.", InputError.exit_code, arguments)
        text = f"{type(error).__name__}: {error}".strip().rstrip(":").splitlines()[0]
        hint = "This is a bug in prunecli; `--debug` shows where."
        return _failed(f"internal error: {text}\n{hint}", INTERNAL_ERROR, arguments)
    if code == INTERRUPTED and started().is_first:
        say_error("interrupted; nothing was left half written")
    return code if isinstance(code, int) else 0


def _complete_in_bash() -> int:
    """Answer bash, which takes values apart at colons; other shells need no help."""
    is_behind_colon = mend_words(os.environ)
    answer = io.StringIO()
    with redirect_stdout(answer), suppress(SystemExit):
        run([])
    text = answer.getvalue()
    sys.stdout.write(behind_colon(text) if is_behind_colon else text)
    return 0


def _failed(message: str, code: int, arguments: list[str], is_of_peer: bool = False) -> int:
    if not may_speak(is_of_peer):
        return code
    if "--debug" in arguments or os.environ.get("PRUNECLI_DEBUG"):
        traceback.print_exc()
    say_error(in_own_name(message))
    return code


def _is_click_error(error: Exception) -> bool:
    """Tell what typer raises for arguments it cannot read; it vendors Click, and exports one subclass."""
    click_error = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    return isinstance(error, click_error)


def _misused(error: Any) -> int:
    """Say in one or two lines what is wrong with the arguments, and the option that may have been meant."""
    message = str(error.format_message()).replace("Value error, ", "").rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError":  # whose message is the help
        say(error.format_message())
        return int(error.exit_code)
    if not may_speak():
        return int(error.exit_code)
    close = getattr(error, "possibilities", None)
    if close:
        message = f"{error.message}. Did you mean `{close[0]}`?"
    elif choice := _NO_CHOICE.search(message):
        message += f".{nearest(choice[1], re.findall(_QUOTED, choice[2]))}".rstrip(".")
    command = error.ctx.command_path if getattr(error, "ctx", None) else "prunecli"
    say_error(in_own_name(f"{message}\nSee `{command} --help`."))
    return int(error.exit_code)
