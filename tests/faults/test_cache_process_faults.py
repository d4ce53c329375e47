"""Two processes on one cache, a holder that is killed, eviction while a job runs.

docs/faults.md 31 and 32.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diskcache
import pytest
from patience import HANG, started, until

from workbench.storage.cache import Cache

REPO = Path(__file__).resolve().parents[2]


# --- 31: two processes -------------------------------------------------------------------------------

WORKER = """
import pathlib, sys, time
from workbench.storage.cache import Cache
folder, log, seconds = sys.argv[1:4]
def make():
    with open(log, "a") as file:
        file.write("made\\n")
    time.sleep(float(seconds))
    return b"v" * 100_000
cache = Cache(folder)
print("ready", flush=True)
sys.stdin.readline()
value, hit = cache.get_or_make("k", make, kind="lora")
assert value == b"v" * 100_000
print("hit" if hit else "made", flush=True)
"""


@pytest.fixture
def start() -> Iterator[Any]:
    """`start(folder, log, seconds)`: a worker that is ready; all of them are ended with the test."""
    with contextlib.ExitStack() as running:

        def begin(folder: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", WORKER, str(folder), str(log), str(seconds)]
            process = running.enter_context(
                started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO)
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield begin


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0
    return out.strip()


def test_fault_31_two_processes_compute_once(tmp_path: Path, start: Any) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path / "derived", log, 0.5) for _ in range(3)]
    for process in processes:
        go(process)
    assert sorted(end(p) for p in processes) == ["hit", "hit", "made"]
    assert log.read_text() == "made\n"


def test_fault_31_the_holder_is_killed_and_the_other_proceeds(tmp_path: Path, start: Any) -> None:
    log = tmp_path / "log"
    holder, other = start(tmp_path / "derived", log, 2 * HANG), start(tmp_path / "derived", log, 0)
    go(holder)
    until(log.exists)
    go(other)
    time.sleep(0.3)
    assert other.poll() is None  # it waits for the holder
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert end(other) == "made"
    assert log.read_text() == "made\nmade\n"


def test_fault_31_diskcaches_own_lock_would_stay_held(tmp_path: Path) -> None:
    """The premise: its lock is a row, and a row does not notice that its writer was killed."""
    code = (
        "import diskcache, os, sys, signal;"
        "c = diskcache.Cache(sys.argv[1]); diskcache.Lock(c, 'l').acquire();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    cache = diskcache.Cache(str(tmp_path))
    assert diskcache.Lock(cache, "l").locked()
    cache.close()


# --- 32: eviction while a job runs --------------------------------------------------------------------


def test_fault_32_eviction_during_a_job_changes_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "derived", limit_bytes=1_000_000)
    noise = Cache(tmp_path / "derived", limit_bytes=1_000_000)

    def stage(name: str) -> bytes:
        raw, _hit = cache.get_or_make(name, lambda: name.encode() * 100_000, kind="k")
        for i in range(3):  # another job fills the cache in between
            noise.put(f"noise {name} {i}", bytes(400_000), kind="k")
        return raw

    for _round in range(2):
        for name in "abc":
            assert stage(name) == name.encode() * 100_000
    assert cache.size() <= 1_000_000
