"""The command `starling`: parses and calls, nothing more.

Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted. Settings have no flags of
their own: `--set section.key=value`. Whatever a command needs is imported inside it, so that `starling --help` answers at
once; rich's help pages are switched off for the same reason.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from starling.cli import alpaca_eval, chain, mt_bench, pairwise, ratings, reward, safety, use  # noqa: F401
from starling.cli.audit import audit_app
from starling.cli.common import app, complain
from starling.cli.data import import_app
from starling.cli.evaluate import evaluate_app
from starling.cli.settings import config_app
from starling.errors import StarlingError


def _show_version(asked: bool) -> None:
    if asked:
        from starling import __version__

        print(f"starling {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Align a language model with AI feedback."""


def main() -> None:
    """Entry point of the command."""
    # torch's OpenMP threads wait for each other by spinning. Beside any other work on the same cores that costs a factor of
    # ten (measured on two cores: 0.2–0.5 instead of 1.9 steps/s); short spinning costs nothing on a quiet machine. GNU's
    # library reads this once, when torch is loaded; a user's own value stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    code = call(sys.argv[1:])
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # One of several processes, and its work is on disk. Threads of torch's process groups can abort the interpreter's
        # shutdown (seen once, under FSDP2), and the launcher would call the finished work failed.
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)
    sys.exit(code)


def call(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code, and says on stderr what went wrong."""
    try:
        code = app(args=list(arguments), prog_name="starling", standalone_mode=False)
    except StarlingError as error:
        rank = os.environ.get("RANK", "0")  # of several processes of one training, started by torchrun
        complain(f"{'' if rank == '0' else f'process {rank}: '}{error}")
        return error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output, e.g. head, has had enough
        sys.stdout = None  # type: ignore[assignment]
        return 1
    except OSError as error:
        place = error.filename or "this machine"
        complain(f"The operating system refuses: {error.strerror or error}. Where: {place}. What to do: mend that, start again.")
        return 1
    except Exception as error:
        said = getattr(error, "format_message", None)
        if said is None:
            return _report_defect()
        if type(error).__name__ == "NoArgsIsHelpError":  # a command group without a command: its help, as it is laid out
            complain(said())
            return 2
        # typer's own complaints about the command line; it exports no class for them
        command = getattr(getattr(error, "ctx", None), "command_path", "starling")
        text = " ".join(said().split()).rstrip(".")
        complain(f"{text}. Where: the command line. What to do: see `{command} --help`.")
        return 2
    if code == 130 and os.environ.get("RANK", "0") == "0":
        complain("Interrupted. What is finished stays, answered model calls too; the same command goes on from here.")
    return int(code or 0)


def _report_defect() -> int:
    import platform
    import traceback

    from starling import __version__

    traceback.print_exc()
    complain(
        f"This is a defect of Starling {__version__} (Python {platform.python_version()}, {platform.system()}). Please report it "
        "with the lines above, the command and the settings file; what is finished in the run directory stays usable."
    )
    return 1


app.add_typer(evaluate_app)
app.add_typer(import_app)
app.add_typer(audit_app)
app.add_typer(config_app)
