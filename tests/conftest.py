"""What every test shares: an own cache folder, one thread, no network."""

from __future__ import annotations

import os
import socket
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports it: kernels run on the CPU

import pytest
from hypothesis import settings

# Speed is never what a test asserts: first calls import, and machines are shared.
settings.register_profile("workbench", deadline=None)
settings.load_profile("workbench")

REPO = Path(__file__).resolve().parent.parent
_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Golden tensors of the reference programs, and the micro model that made them."""
    return REPO / "tests" / "data" / "reference"


@pytest.fixture(scope="session")
def micro_sd(reference_dir: Path) -> Path:
    """A random 1.1 M pipeline in Stable Diffusion 1.x's layout."""
    return reference_dir / "micro_sd"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the workbench at a fresh cache folder, so that no test sees the user's data."""
    folder = tmp_path / "workbench-cache"
    monkeypatch.setenv("WORKBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(host).startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {address!r}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
