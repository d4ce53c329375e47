"""The registry, what is found on disk, fingerprints, and what is said when something is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file

from workbench.core.errors import BadInput, ModelError, WorkbenchError
from workbench.diffusion.registry import BUILTIN, ModelSpec, Registry, suited
from workbench.diffusion.registry.files import find_files, fingerprint
from workbench.diffusion.registry.loading import load_parts
from workbench.imaging import decode

REPO = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def copy(micro_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_sd, tmp_path / "model"))


def spec_of(folder: Path, **more: str) -> ModelSpec:
    return ModelSpec(name="mine", path=str(folder), **more)  # type: ignore[arg-type]


def change(folder: Path, name: str, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / name)
    how(tensors)
    save_file(tensors, folder / name)


def test_registry_resolves_names_and_paths(micro_sd: Path) -> None:
    registry = Registry()
    assert {"storybook", "sd15", "sd21", "sd21-base", "sdxl"} <= set(registry.names())
    assert registry.resolve("sd15").hub == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert registry.resolve(str(micro_sd)).path == str(micro_sd.resolve())


@pytest.mark.parametrize(
    ("name", "error", "code"),
    [
        ("sd99", BadInput, "unknown-name"),
        ("x\0y", BadInput, "unknown-name"),
        ("/no/such/folder", BadInput, "no-file"),
        ("model.ckpt", ModelError, "pickle"),
        ("some/where/unet.bin", ModelError, "pickle"),
        ("gone.safetensors", BadInput, "no-file"),
    ],
)
def test_unknown_models_are_refused(name: str, error: type[WorkbenchError], code: str) -> None:
    with refusal(code, kind=error):
        Registry().resolve(name)


def test_models_toml_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    registry = Registry(file)
    registry.add(
        ModelSpec(name="comic", hub="a/b", title='Co"mic\u00e9 \U0001f600', native_size=640)
    )
    registry.add(ModelSpec(name="other", path="weights/x.safetensors", config="sd15"))
    again = Registry(file)
    assert again.resolve("comic") == registry.resolve("comic")
    assert again.resolve("other").path == str((tmp_path / "weights/x.safetensors").resolve())
    again.remove("comic")
    assert "comic" not in Registry(file).names()
    with refusal("built-in"):
        registry.add(ModelSpec(name="sd15", hub="a/b"))
    with refusal("unknown-name"):
        registry.remove("sd15")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[comic", "unreadable"),
        ("comic = 3", "not-a-table"),
        ("[comic]\ncolour = 'red'", "unknown-key"),
        ("[comic]", "path-or-hub"),
        ("[comic]\nhub = 'a/b'\nnative_size = '512'", "wrong-type"),
        ("[comic]\nhub = 'a/b'\nnative_size = 5", "out-of-range"),
        ("[comic]\nhub = 'a/b'\nprediction = 'x0'", "out-of-range"),
        ("[sdxl]\nhub = 'a/b'", "bad-name"),
    ],
)
def test_bad_models_toml_is_refused(text: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with refusal(code):
        Registry(file)


def test_missing_hub_model_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for spec in BUILTIN:
        if spec.hub:
            with refusal("not-here", kind=ModelError) as caught:
                find_files(spec)
            assert f"models download {spec.name}'" in str(caught.value)  # a command, to be copied


def test_fault_24_every_damage_has_its_sentence(copy: Path) -> None:
    first = {name: sorted(load_file(copy / name))[0] for name in (UNET, VAE, TEXT)}

    def refuse(
        name: str, how: Callable[[dict[str, torch.Tensor]], object], code: str, key: str
    ) -> None:
        before = (copy / name).read_bytes()
        change(copy, name, how)
        with refusal(code, kind=ModelError) as caught:
            load_parts(find_files(spec_of(copy)), CPU, torch.float32)
        assert key in str(caught.value)
        (copy / name).write_bytes(before)

    for name in (UNET, VAE, TEXT):
        key = first[name]
        refuse(name, lambda t, k=key: t.pop(k), "misfit", key.split(".")[-1])  # type: ignore[misc]
        refuse(name, lambda t: t.update(foo=torch.zeros(1)), "misfit", "foo")
        wrong = torch.zeros(3, 5)
        refuse(name, lambda t, k=key, w=wrong: t.update({k: w}), "misfit", key.split(".")[-1])  # type: ignore[misc]
        refuse(name, lambda t, k=key: t[k].view(-1)[:1].fill_(torch.nan), "not-finite", "")  # type: ignore[misc]
    load_parts(find_files(spec_of(copy)), CPU, torch.float32)


def test_fault_24_damaged_files(copy: Path) -> None:
    weights = copy / UNET
    raw = weights.read_bytes()
    for content, code in (
        (raw[:4], "not-safetensors"),
        (raw[:200], "cut-short"),
        (raw[:-9], "cut-short"),
        (raw + b"x", "too-long"),
        (b"", "empty"),
        (bytes(5000), "zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n", "lfs-pointer"),
        (b"/annex/objects/SHA256-s9--aa\n", "lfs-pointer"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "web-page"),
        (b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web-page"),
        (b'{"error":"Repository not found"}', "web-page"),
        (b"PK\x03\x04" + bytes(99), "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"GGUF\x03\0\0\0", "gguf"),
        (b"\x1f\x8b\x08", "packed"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "picture"),
        (struct.pack("<Q", 40) + b"{" * 40, "not-safetensors"),
    ):
        weights.write_bytes(content)
        with refusal(
            code, kind=ModelError
        ) as caught:  # by find_files, so before anything is loaded
            find_files(spec_of(copy))
        assert "damaged" not in str(caught.value)
    weights.write_bytes(raw)
    weights.rename(weights.with_suffix(".bin"))
    with refusal("pickle", kind=ModelError):
        find_files(spec_of(copy))
    weights.with_suffix(".bin").unlink()
    with refusal("missing-file", kind=ModelError):
        find_files(spec_of(copy))


@pytest.mark.parametrize(
    ("name", "change_to", "code"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "other-architecture"),
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "missing-file"),
        ("unet/config.json", {"in_channels": 9}, "channels"),
        ("unet/config.json", {"_class_name": "UNet3D"}, "other-architecture"),
        ("vae/config.json", None, "missing-file"),
        ("scheduler/scheduler_config.json", None, "missing-file"),
        ("tokenizer/vocab.json", None, "missing-file"),
    ],
)
def test_wrong_kinds_of_models(
    copy: Path, name: str, change_to: dict[str, object], code: str
) -> None:
    if change_to is None:
        (copy / name).unlink()
    else:
        data = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(data | change_to))
    with refusal(code, kind=ModelError):
        find_files(spec_of(copy))


@pytest.mark.parametrize(
    ("name", "change_to", "code"),
    [
        ("unet/config.json", {"cross_attention_dim": 48}, "misfit"),
        ("vae/config.json", {"latent_channels": 8}, "misfit"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "unknown-prediction"),
        ("text_encoder/config.json", {"architectures": ["T5"]}, "other-architecture"),
        ("vae/config.json", {"_class_name": "VQModel"}, "other-architecture"),
    ],
)
def test_configurations_that_do_not_fit(
    copy: Path, name: str, change_to: dict[str, object], code: str
) -> None:
    data = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(data | change_to))
    with refusal(code, kind=ModelError):
        load_parts(find_files(spec_of(copy)), CPU, torch.float32)


def test_a_variant_is_found(copy: Path, micro_sd: Path) -> None:
    for name in (UNET, VAE, TEXT):
        tensors = {k: v.half() if v.is_floating_point() else v
                   for k, v in load_file(copy / name).items()}  # fmt: skip
        save_file(tensors, (copy / name).with_suffix(".fp16.safetensors"))
        (copy / name).unlink()
    files = find_files(spec_of(copy))
    assert set(files.variants.values()) == {"fp16"}
    parts = load_parts(files, CPU, torch.float32)
    whole = load_parts(find_files(spec_of(micro_sd)), CPU, torch.float32)
    for mine, theirs in zip(parts.unet.parameters(), whole.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs.half().float())


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("style", ["new", "old"])
def test_shards_are_found_also_of_a_variant(
    copy: Path, micro_sd: Path, variant: str, style: str
) -> None:
    """`….safetensors.index.fp16.json`, with shards named as diffusers names them now and before."""
    for name in (UNET, VAE, TEXT):
        path = copy / name
        tensors = sorted(load_file(path).items())
        dot = f".{variant}" if variant else ""
        table: dict[str, str] = {}
        for i, part in enumerate((tensors[::2], tensors[1::2]), 1):
            count = f"-{i:05}-of-00002"
            shard = f"{path.stem}{dot}{count}" if style == "old" else f"{path.stem}{count}{dot}"
            save_file(dict(part), path.with_name(f"{shard}.safetensors"), metadata={"format": "pt"})
            table |= {k: f"{shard}.safetensors" for k, _ in part}
        path.unlink()
        index = path.with_name(f"{path.name}.index{dot}.json")
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    files = find_files(spec_of(copy))
    assert set(files.variants.values()) == {variant}
    parts = load_parts(files, CPU, torch.float32)
    whole = load_parts(find_files(spec_of(micro_sd)), CPU, torch.float32)
    for mine, theirs in zip(parts.modules().values(), whole.modules().values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(),
                                                     strict=True))  # fmt: skip
    next(iter(sorted((copy / "unet").glob("*00002.*")))).unlink()
    with refusal("missing-file", kind=ModelError):
        find_files(spec_of(copy))


@pytest.mark.parametrize("text", ['"{}"', "'{}'", " {} ", "file://{}", '  "{}"'])
def test_a_pasted_path_is_understood(micro_sd: Path, text: str) -> None:
    assert Registry().resolve(text.format(micro_sd)).path == str(micro_sd.resolve())
    assert Registry().source(text.format(micro_sd)) == {"path": str(micro_sd.resolve())}


def test_loaded_parts_are_frozen(micro_sd: Path) -> None:
    parts = load_parts(find_files(spec_of(micro_sd)), CPU, torch.float32)
    for module in parts.modules().values():
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
    assert len(parts.text_encoders) == len(parts.tokenizers) == 1


def test_fingerprint_follows_what_is_computed(copy: Path, tmp_path: Path) -> None:
    memory = tmp_path / "sums.json"
    first = fingerprint(find_files(spec_of(copy)), memory)
    moved = Path(shutil.copytree(copy, tmp_path / "moved"))
    assert fingerprint(find_files(spec_of(moved)), memory) == first
    assert len(json.loads(memory.read_text())) == 6
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(config | {"_diffusers_version": "9"}))
    assert fingerprint(find_files(spec_of(copy)), memory) == first
    assert fingerprint(find_files(spec_of(copy, prediction="v_prediction")), memory) != first
    change(copy, UNET, lambda t: t["conv_in.bias"].add_(1))
    assert fingerprint(find_files(spec_of(copy)), memory) != first


def test_fingerprint_reads_each_file_once(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "sums.json"
    files = find_files(spec_of(copy))
    first = fingerprint(files, memory)

    def refuse(*_args: object) -> None:
        raise AssertionError("a file was hashed again")

    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", refuse)
        assert fingerprint(files, memory) == first
    memory.write_text("{ damaged")
    assert fingerprint(files, memory) == first


def test_another_autoencoder(copy: Path, micro_sd: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(micro_sd / "vae", tmp_path / "my-vae"))
    change(own, "diffusion_pytorch_model.safetensors", lambda t: t["decoder.conv_out.bias"].add_(1))
    shutil.rmtree(copy / "vae")
    files = find_files(spec_of(copy, vae=str(own)))
    parts = load_parts(files, CPU, torch.float32)
    plain = load_parts(find_files(spec_of(micro_sd)), CPU, torch.float32)
    assert torch.equal(parts.vae.decoder.conv_out.bias, plain.vae.decoder.conv_out.bias + 1)
    assert fingerprint(files) != fingerprint(find_files(spec_of(micro_sd)))
    with refusal("no-vae", kind=ModelError):
        find_files(spec_of(copy, vae=str(tmp_path / "nowhere")))


def test_the_picture_decides_between_the_shipped_models() -> None:
    rng = np.random.default_rng(0)
    grain = rng.integers(90, 160, (300, 400, 3), dtype=np.uint8)
    flat = np.zeros((300, 400, 3), np.uint8)
    flat[:, 200:] = (200, 120, 40)
    assert suited(grain) == "album"
    assert suited(flat) == "storybook"
    for example in sorted((REPO / "workbench" / "ui" / "examples").glob("*.png")):
        assert suited(decode.decode(example.read_bytes()).rgb) == "storybook", example.name
