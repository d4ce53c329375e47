"""Fixtures of the tests that run a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import build


@pytest.fixture(autouse=True)
def one_thread_repeatable() -> Iterator[None]:
    """The same bits each time: one thread, and only algorithms that promise it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(micro_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("sd2v")`: the folder of a random pipeline of that architecture."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp(kind), micro_sd / "tokenizer")
        return made[kind]

    return get
