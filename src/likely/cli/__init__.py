"""The command line: `likely fit | predict | evaluate | capture | distill | check`.

Each command is a thin layer over the library. Nothing heavy is imported before a command runs, so that `--help` is
quick.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from typing import Annotated, Any

import typer

from likely.cli.capture import capture
from likely.cli.check import check
from likely.cli.distill import distill
from likely.cli.evaluate import evaluate
from likely.cli.fit import fit
from likely.cli.predict import predict

app = typer.Typer(
    name="likely",
    help="Probabilistic classifiers from labels, from probabilities and from teachers: cross-entropy = entropy + KL.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for command in (fit, predict, evaluate, capture, distill, check):
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        from likely import _products
        from likely.kernels import native

        passes = f"row pass: {native.active()}, float32 products: {_products.active()}"
        print(f"likely {importlib.metadata.version('likely')} ({passes})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what is wrong with its input becomes one line on stderr, and the exit status says so.

    Status 0: done. 1: the input cannot be used, or a fit failed. 2: the command was not understood. 130, 143: it was
    interrupted or terminated. With `LIKELY_DEBUG=1` in the environment errors come with their traceback.
    """
    # A terminated run tidies up its unfinished files as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status = app(arguments, prog_name="likely", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted; what was unfinished was not written", 130)
    except typer.Abort:
        _fail("aborted; nothing was written", 130)
    except BrokenPipeError:  # the reader of our output has gone, which is its right; typer says so with a 1, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("LIKELY_DEBUG"):
            raise
        _fail(_reason(error), 1)
    except Exception as error:
        usage: Any = getattr(error, "format_message", None)  # click's errors, whichever click typer brings
        if usage is None:
            raise
        asked: Any = getattr(error, "ctx", None)
        _fail(f"{usage().rstrip('.')} (see {asked.command_path if asked else 'likely'} --help)", 2)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _fail(message: str, status: int) -> None:
    from likely.cli.output import printable

    print(f"likely: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)
