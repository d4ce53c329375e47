"""The memory estimate: counted activations against a real run, and advice that is true."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import KINDS

from benchmarks import cards
from workbench.core.config import LoraConfig
from workbench.core.request import EditRequest, ImageAsset, Point, PointPair
from workbench.diffusion import model
from workbench.diffusion.device import Memory
from workbench.diffusion.registry import Registry
from workbench.diffusion.registry.files import ModelFiles, find_files
from workbench.editing import memory
from workbench.editing.memory import Need, estimate

REQUEST = EditRequest(
    image=ImageAsset(id="wb1:1", width=512, height=512),
    pairs=(PointPair(Point(10, 10), Point(20, 10)),),
)
GB = 10**9


def saved_bytes(run: model.Runtime, side: int) -> int:
    """What a real forward of the U-Net leaves for the backward pass, counted by its storages."""
    own = {p.untyped_storage()._cdata for p in run.unet.parameters()}
    seen: dict[int, int] = {}
    alive = []  # or a storage's address would be used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        where = tensor.untyped_storage()._cdata
        alive.append(tensor)
        if where not in own:
            seen[where] = max(seen.get(where, 0), tensor.numel() * tensor.element_size())
        return tensor

    text = run.text("x")
    latent = torch.zeros(1, 4, side // 8, side // 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run.unet(latent, 500, text.embedding, added_cond_kwargs=run.added(text, (side, side)))
    return sum(seen.values())


@pytest.mark.parametrize("kind", KINDS)
def test_counted_activations_are_those_of_a_real_run(
    tiny_model: Callable[[str], Path], kind: str
) -> None:
    run = model.load(str(tiny_model(kind)), device="cpu")
    files = find_files(Registry().resolve(str(tiny_model(kind))))
    for side in (64, 128):
        counted = memory._counted(files)(1, side, side) * 4
        assert counted == pytest.approx(saved_bytes(run, side), rel=0.05)


@pytest.fixture
def files(micro_sd: Path) -> ModelFiles:
    return find_files(Registry().resolve(str(micro_sd)))


def asked(files: ModelFiles, free: float, **changes: object) -> Need:
    request = dataclasses.replace(REQUEST, **changes)  # type: ignore[arg-type]
    return estimate(
        request, files, native=512, device="cpu", dtype="fp32", loaded=False,
        memory=Memory(int(free * GB), 64 * GB),
    )  # fmt: skip


def test_more_pixels_and_batches_need_more(files: ModelFiles) -> None:
    usual = asked(files, 64)
    assert usual.fits
    assert usual.advice == ""
    assert asked(files, 64, lora=LoraConfig(batch_size=8)).peak > 1.5 * usual.peak
    assert asked(files, 64, working_size=256).stages["drag"] < usual.stages["drag"]
    assert "lora" not in asked(files, 64, lora=LoraConfig(steps=0)).stages


def test_advice_names_a_setting_that_fits(files: ModelFiles) -> None:
    usual = asked(files, 64)
    tight = asked(files, (usual.sparing + 1e6) / GB)
    assert not tight.fits
    assert "low-memory mode fits" in tight.advice
    single = asked(files, 64, lora=LoraConfig(batch_size=1), working_size=320)
    tighter = asked(files, min(single.peak, usual.sparing - 1e6) / GB)
    words = tighter.advice
    assert "GB are free" in words
    size = int(words.split("working size of ")[1].split(" px")[0])
    fitting = asked(files, 64, lora=LoraConfig(batch_size=1), working_size=size)
    assert fitting.peak <= tighter.free
    assert "choose a smaller model" in asked(files, 0.01).advice


def test_a_loaded_model_counts_as_free(files: ModelFiles) -> None:
    given = {"native": 512, "device": "cpu", "dtype": "fp32", "memory": Memory(GB, 2 * GB)}
    cold = estimate(REQUEST, files, loaded=False, **given)  # type: ignore[arg-type]
    warm = estimate(REQUEST, files, loaded=True, **given)  # type: ignore[arg-type]
    assert warm.free - cold.free == memory._weights(files, "fp32") > 4_000_000


def test_a_larger_card_carries_more_and_the_table_says_where_each_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = argparse.Namespace(model=["sd15"], cards=[8, 24], dtype="fp16")
    assert cards.run(args) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if " GB " in line]
    ends = [[int(cell.split()[0]) for cell in row[3:6]] for row in rows]
    assert len(ends) == 2
    for small, large in zip(*ends, strict=True):
        assert 512 <= small < large
    need = cards._estimator("sd15", "fp16")
    limit = ends[0][0]
    assert need(limit).peak <= 8 * 2**30 * cards._OURS < need(limit + 64).peak
    assert cards._parameters(cards._files("sd15")) == pytest.approx(1.066e9, rel=0.01)
