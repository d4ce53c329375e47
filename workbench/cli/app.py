"""`app`: start the pages on this machine."""

from __future__ import annotations

import argparse
import runpy
import socket
import sys
from typing import Any

from workbench import WEB
from workbench.core.errors import BadInput

HOST = "127.0.0.1"


def add_parsers(subparsers: Any) -> None:
    """Add `app`."""
    parser = subparsers.add_parser("app", help="start the workbench in the browser")
    parser.add_argument("--port", type=int, default=8501, help="port on this machine, 1 to 65535")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve the pages until Ctrl-C.

    Raises:
        BadInput: when the port is out of range or in use.
    """
    if not 1 <= args.port <= 65535:
        raise BadInput(f"--port is {args.port}; choose one from 1 to 65535.")
    try:
        socket.create_server((HOST, args.port)).close()
    except OSError as exc:
        raise BadInput(
            f"Port {args.port} is in use or not allowed ({exc.strerror}); choose another with --port."
        ) from exc
    print(f"The drag workbench: http://{HOST}:{args.port}   (Ctrl+C stops it)", flush=True)
    sys.argv = ["streamlit", "run", str(WEB / "streamlit_app.py"), "--server.port", str(args.port)]
    try:
        runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    return 0
