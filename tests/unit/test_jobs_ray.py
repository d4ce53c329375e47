"""Jobs on Ray: the executors' contract, and what only worker processes have. One local Ray, two workers.

The faults are real: processes are killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from patience import HANG, until
from test_jobs_contract import *  # noqa: F403  every test of the contract, with this module's `jobs`
from test_jobs_contract import run

import workbench
from workbench.core.errors import Cancelled
from workbench.core.record import EditRecord, JobState, StepInfo
from workbench.core.request import EditRequest
from workbench.jobs.board import Board
from workbench.jobs.job import Job, Task
from workbench.jobs.ray_executor import RayExecutor, connect
from workbench.storage.cache import Cache
from workbench.storage.history import Store, verify

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray of two processors for the whole file, on the loopback address, with its token on."""
    import ray

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        connect(processors=2)
        yield
        ray.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Ray leaves its Popen objects to the collector
        gc.collect()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[RayExecutor]:
    made = RayExecutor(run, workers=1, board=Board(tmp_path / "jobs"))
    yield made
    made.close()


# --- where it listens -----------------------------------------------------------------------------------


def test_ray_listens_on_the_loopback_address_only_and_wants_its_token(jobs: RayExecutor) -> None:
    until(lambda: bool(jobs._actors))
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    addresses = set()
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            found = process.net_connections("tcp")
            addresses |= {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    code = f"import ray; ray.init(address={jobs_address()!r}, log_to_driver=False)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    stranger = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    done = subprocess.run([sys.executable, "-c", code], env=stranger, capture_output=True, text=True)
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr or "Unauthenticated" in done.stderr


def jobs_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)
