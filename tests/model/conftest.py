"""Fixtures of the tests that run a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from edit_bench import Bench
from golden import Micro, load_micro
from tiny_models import build

from workbench.diffusion import model
from workbench.diffusion.model import Runtime
from workbench.storage.cache import Cache
from workbench.storage.history import Store


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """The same bits each time: a fixed number of threads, and only algorithms that promise it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
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


@pytest.fixture(name="model")
def sd1_folder(tiny_model: Callable[[str], Path]) -> Path:
    """The folder of the random Stable Diffusion 1.x pipeline."""
    return tiny_model("sd1")


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Micro:
    """The pipeline that the golden tensors were made with."""
    return load_micro(micro_sd)


@pytest.fixture(scope="session")
def tiny(tiny_model: Callable[[str], Path]) -> Runtime:
    """The random Stable Diffusion 1.x pipeline, loaded once."""
    return model.load(str(tiny_model("sd1")), device="cpu")


@pytest.fixture
def bench(tiny: Runtime, tmp_path: Path) -> Iterator[Bench]:
    """That model with a history and a cache of its own."""
    tiny.forget()
    store = Store(tmp_path / "history")
    yield Bench(tiny, store, Cache(tmp_path / "derived"))
    store.close()
