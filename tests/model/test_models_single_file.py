"""Single-file checkpoints: the micro model is rewritten into the original layout and read back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.core.errors import ModelError
from workbench.diffusion.registry import ModelSpec, Registry, find_files
from workbench.diffusion.registry.loading import load_parts

CPU = torch.device("cpu")
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str) -> str:
    """A diffusers U-Net tensor's name in the original layout (4 levels, 2 layers per block)."""
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]

    def resnet(rest: str) -> str:
        part, _, end = rest.partition(".")
        return f"{RESNET[part]}.{end}"

    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name)
    if found:
        way, i, kind, j, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        block = f"input_blocks.{3 * i + j + 1}" if way == "down" else f"output_blocks.{3 * i + j}"
        return f"{block}.0.{resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name)
    if found:
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{place}." + (found[3] if place == 1 else resnet(found[3]))
    found = re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)", name)
    if found:
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op.{found[2]}"
    found = re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)", name)
    assert found, name
    return f"output_blocks.{3 * int(found[1]) + 2}.{1 if found[1] == '0' else 2}.conv.{found[2]}"


def vae_name(name: str) -> str:
    """A diffusers autoencoder tensor's name in the original layout (4 levels)."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name
    )
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    for ours, theirs in ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    return name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    micro = Path(__file__).resolve().parents[1] / "data" / "reference" / "micro_sd"
    made: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(micro / "unet/diffusion_pytorch_model.safetensors").items():
        made["model.diffusion_model." + unet_name(name)] = tensor
    for name, tensor in load_file(micro / "vae/diffusion_pytorch_model.safetensors").items():
        new = vae_name(name)
        square = "attn_1" in new and "norm" not in new and tensor.ndim == 2
        made["first_stage_model." + new] = tensor[:, :, None, None] if square else tensor
    for name, tensor in load_file(micro / "text_encoder/model.safetensors").items():
        made["cond_stage_model.transformer." + name] = tensor
    path = tmp_path_factory.mktemp("single") / "comic.safetensors"
    save_file(made, path)
    return path


def test_single_file_equals_its_folder(checkpoint: Path, micro_sd: Path) -> None:
    spec = ModelSpec(name="comic", path=str(checkpoint), config=str(micro_sd))
    parts = load_parts(find_files(spec), CPU, torch.float32)
    whole = load_parts(find_files(ModelSpec(name="micro", path=str(micro_sd))), CPU, torch.float32)
    for (name, mine), theirs in zip(parts.modules().items(), whole.modules().values(), strict=True):
        ours, other = mine.state_dict(), theirs.state_dict()
        assert ours.keys() == other.keys(), name
        assert all(torch.equal(ours[k], other[k]) for k in ours), name


def test_single_file_without_configuration_says_what_to_fetch(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"models download sd15 --config-only"):
        find_files(Registry().resolve(str(checkpoint)))


def test_single_file_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"unet.x.lora_A.weight": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match="if it is a LoRA"):
        find_files(Registry().resolve(str(file)))
    sd2 = {"cond_stage_model.model.ln_final.bias": torch.zeros(2),
           "model.diffusion_model.out.2.bias": torch.zeros(2)}  # fmt: skip
    save_file(sd2, file)
    with pytest.raises(ModelError, match="--config sd21"):
        find_files(Registry().resolve(str(file)))


def test_single_file_lacking_a_tensor(checkpoint: Path, micro_sd: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    spec = ModelSpec(name="cut", path=str(tmp_path / "cut.safetensors"), config=str(micro_sd))
    with pytest.raises(ModelError, match="unet of 'cut'"):
        load_parts(find_files(spec), CPU, torch.float32)
