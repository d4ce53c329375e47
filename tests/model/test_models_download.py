"""What would be fetched from the hub, with a hub of our own: no test reaches the network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusals import refusal

from workbench.core.errors import Cancelled, ModelError
from workbench.core.record import StepInfo
from workbench.diffusion.registry import Registry
from workbench.diffusion.registry.download import _reason, download, plan

SD15 = {
    "model_index.json": 500,
    "scheduler/scheduler_config.json": 300,
    "unet/config.json": 800,
    "unet/diffusion_pytorch_model.safetensors": 3_400 * 2**20,
    "unet/diffusion_pytorch_model.fp16.safetensors": 1_700 * 2**20,
    "unet/diffusion_pytorch_model.bin": 3_400 * 2**20,
    "vae/config.json": 500,
    "vae/diffusion_pytorch_model.safetensors": 320 * 2**20,
    "vae/diffusion_pytorch_model.fp16.safetensors": 160 * 2**20,
    "text_encoder/config.json": 600,
    "text_encoder/model.safetensors": 480 * 2**20,
    "tokenizer/vocab.json": 1_000_000,
    "tokenizer/merges.txt": 500_000,
    "safety_checker/model.safetensors": 1_200 * 2**20,
    "v1-5-pruned-emaonly.safetensors": 4_000 * 2**20,
}


class Hub:
    def __init__(self, files: dict[str, int]) -> None:
        self.files = files

    def model_info(self, repo: str, **_more: Any) -> Any:
        siblings = [SimpleNamespace(rfilename=n, size=s) for n, s in self.files.items()]
        card = SimpleNamespace(to_dict=lambda: {"license": "creativeml-openrail-m"})
        return SimpleNamespace(siblings=siblings, sha="abc123", card_data=card)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(dict(SD15))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
    return made


def test_half_precision_and_nothing_superfluous(hub: Hub) -> None:
    found = plan(Registry().resolve("sd15"))
    names = dict(found.files)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names
    assert "text_encoder/model.safetensors" in names
    assert not any(n.endswith(".bin") or "safety" in n or "pruned" in n for n in names)
    assert "unet/diffusion_pytorch_model.safetensors" not in names
    assert found.bytes == sum(SD15[n] for n in names)
    assert (found.licence, found.revision) == ("creativeml-openrail-m", "abc123")


def test_full_precision_and_configuration_only(hub: Hub) -> None:
    spec = Registry().resolve("sd15")
    assert "unet/diffusion_pytorch_model.safetensors" in dict(plan(spec, full=True).files)
    light = plan(spec, config_only=True)
    assert light.bytes < 2_000_000
    assert "tokenizer/vocab.json" in dict(light.files)


def test_a_hub_model_of_pickles_is_refused(hub: Hub) -> None:
    for name in [n for n in hub.files if n.startswith("unet") and n.endswith("safetensors")]:
        del hub.files[name]
    with refusal("no-safetensors", kind=ModelError):
        plan(Registry().resolve("sd15"))


def test_what_is_not_from_the_hub(micro_sd: Path) -> None:
    with refusal("nothing-to-fetch"):
        plan(Registry().resolve(str(micro_sd)))


def test_fault_45_without_a_network_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def model_info(self, *_args: Any, **_more: Any) -> Any:
            raise ConnectionError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr("huggingface_hub.HfApi", Gone)
    with refusal("no-network", kind=ModelError):
        plan(Registry().resolve("sd15"))


def test_progress_and_cancel(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(repo: str, name: str, *, revision: str, tqdm_class: Any) -> str:
        assert (repo, revision) == ("stable-diffusion-v1-5/stable-diffusion-v1-5", "abc123")
        bar = tqdm_class(total=SD15[name], initial=0, desc=name, name="hub")
        for _ in range(4):
            bar.update(SD15[name] // 4)
        bar.close()
        fetched.append(name)
        return str(tmp_path / "snapshot" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    steps: list[StepInfo] = []
    found = plan(Registry().resolve("sd15"))
    assert download(found, steps.append) == tmp_path / "snapshot"
    assert fetched == [n for n, _ in found.files]
    counts = [s.step for s in steps]
    assert counts == sorted(counts)
    assert steps[-1].step == steps[-1].total == found.bytes // 2**20

    def stop(info: StepInfo) -> None:
        if info.step > 100:
            raise Cancelled("Cancelled.")

    fetched.clear()
    with pytest.raises(Cancelled):
        download(found, stop)
    assert len(fetched) < len(found.files)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Cannot reach https://x.invalid/api: offline mode is enabled. To disable it, please "
            "unset the `HF_HUB_OFFLINE` environment variable.",
            "this machine is told to stay offline: HF_HUB_OFFLINE is set",
        ),
        ("no  route\nto host", "no route to host"),
        ("", "OSError"),
    ],
)
def test_why_the_hub_was_not_reached_is_said_in_whole_words(said: str, told: str) -> None:
    assert _reason(OSError(said)) == told
    long = _reason(OSError("word " * 100))
    assert len(long) <= 160
    assert long.endswith("word …")
