"""`python -m workbench`: the same engine as the pages, from the command line.

Exit codes: 0 done, 1 failure, 2 bad input, 130 cancelled. One sentence on standard error says why;
`--debug` adds the traceback. Nothing here imports torch before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import logging
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench import WEB, __version__
from workbench.cli.parsers import Parser, describe, option_name
from workbench.core.errors import BadInput, Cancelled, WorkbenchError

OK, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130

# Each module has `add_parsers(subparsers)`; every parser sets `run(args) -> int`.
_COMMANDS = (
    "workbench.cli.edit",
    "workbench.cli.batch",
    "workbench.cli.library",
    "workbench.cli.history",
    "workbench.cli.doctor",
)
_GROUPS = (
    ("demo", "training.cli", "scenes with known motion; training of the model that ships"),
    ("bench", "benchmarks.cli", "quality and speed, measured"),
)


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="drag-workbench"
        if Path(sys.argv[0]).stem == "drag-workbench"
        else "python -m workbench",
        description="Point-drag image editing: features of a picture move along the arrows you draw.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the log")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_app_parser(subparsers)
    for name in _COMMANDS:
        importlib.import_module(name).add_parsers(subparsers)
    for name, module, text in _GROUPS:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            continue  # benchmarks/ and training/ come with a checkout only
        group = subparsers.add_parser(name, help=text, description=text)
        inner = group.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
        importlib.import_module(module).add_parsers(inner)
    describe(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code and prints at most one sentence on failure."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.ERROR,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        return execute([a for a in given if a != "--debug"])
    except BadInput as exc:
        return _say(exc.with_field(option_name(exc.field)), BAD_INPUT, debug)
    except (Cancelled, KeyboardInterrupt):
        return _say("Cancelled.", CANCELLED, debug)
    except WorkbenchError as exc:
        return _say(exc, FAILED, debug)
    except BrokenPipeError:  # stdout was closed by the reader (e.g. `| head`); not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except SystemExit as exc:  # --help and --version
        return exc.code if isinstance(exc.code, int) else OK
    except Exception as exc:
        text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        hint = "" if debug else "; run again with --debug for the details"
        return _say(f"This was not foreseen ({text:.300}){hint}.", FAILED, debug)


def execute(given: Sequence[str]) -> int:
    """Run one command without catching its errors; returns the exit code.

    Raises:
        WorkbenchError: with code and field, which `main` turns into a sentence and an exit code.
    """
    args: Any = build_parser().parse_args(_joined(given))
    return int(args.run(args) or OK)


def _joined(given: Sequence[str]) -> list[str]:
    """`--pair -9,3:4,3` as one argument: argparse would take the value for an option."""
    out: list[str] = []
    for text in given:
        if out and out[-1] == "--pair" and text.startswith("-") and ":" in text:
            out[-1] = f"--pair={text}"
        else:
            out.append(text)
    return out


def _say(what: object, code: int, debug: bool) -> int:
    if debug:
        logging.getLogger("workbench").error("stopped", exc_info=True)
    text = " ".join(str(what).split())
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stderr.write(f"workbench: {text}\n")
    return code


HOST = "127.0.0.1"


def _add_app_parser(subparsers: Any) -> None:
    """Add `app`."""
    parser = subparsers.add_parser("app", help="start the workbench in the browser")
    parser.add_argument("--port", type=int, default=8501, help="port on this machine, 1 to 65535")
    parser.set_defaults(run=run_app)


def run_app(args: argparse.Namespace) -> int:
    """Serve the pages until Ctrl-C.

    Raises:
        BadInput: when the port is out of range or in use.
    """
    if not 1 <= args.port <= 65535:
        raise BadInput(
            f"--port is {args.port}; choose one from 1 to 65535.",
            code="out-of-range",
            field="--port",
        )
    try:
        socket.create_server((HOST, args.port)).close()
    except OSError as exc:
        raise BadInput(
            f"Port {args.port} is in use or not allowed ({exc.strerror}); choose another with --port.",
            code="port-in-use",
            field="--port",
        ) from exc
    print(f"The drag workbench: http://{HOST}:{args.port}   (Ctrl+C stops it)", flush=True)
    sys.argv = ["streamlit", "run", str(WEB / "streamlit_app.py"), "--server.port", str(args.port)]
    try:
        runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    return 0
