"""Single-file checkpoints: the micro model is rewritten into the original layout and read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file

from workbench.core.errors import ModelError
from workbench.diffusion.ddim import schedule_from
from workbench.diffusion.registry import ModelSpec, Registry
from workbench.diffusion.registry.files import STANDARD, ModelFiles, find_files, fingerprint
from workbench.diffusion.registry.loading import _tokenizers, load_parts

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


def changed(
    checkpoint: Path,
    folder: Path,
    *,
    more: dict[str, torch.Tensor] | None = None,
    without: str = "",
    metadata: dict[str, str] | None = None,
    rename: tuple[str, str] = ("", ""),
) -> Path:
    """The checkpoint with tensors added, left out or renamed, or with a header."""
    tensors = {
        k.replace(*rename) if rename[0] else k: v
        for k, v in load_file(checkpoint).items()
        if not without or not k.startswith(without)
    }
    path = folder / "changed.safetensors"
    save_file({**tensors, **(more or {})}, path, metadata=metadata)
    return path


def files_of(path: Path, config: Path | str = "", **more: str) -> ModelFiles:
    return find_files(ModelSpec(name="comic", path=str(path), config=str(config), **more))


MARK = torch.zeros(0)


@pytest.mark.parametrize(
    ("more", "metadata", "prediction", "zero_snr"),
    [
        ({}, {}, "epsilon", False),
        ({"v_pred": MARK}, {}, "v_prediction", False),
        ({"v_pred": MARK, "ztsnr": MARK}, {}, "v_prediction", True),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        ({}, {"modelspec.prediction_type": "v_prediction", "ss_zero_terminal_snr": "True"},
         "v_prediction", True),
    ],
)  # fmt: skip
def test_markers_and_header_say_how_a_model_predicts(
    checkpoint: Path, micro_sd: Path, tmp_path: Path, more: dict[str, torch.Tensor],
    metadata: dict[str, str], prediction: str, zero_snr: bool,
) -> None:  # fmt: skip
    path = changed(checkpoint, tmp_path, more=more, metadata=metadata or None)
    files = files_of(path, micro_sd)
    schedule = schedule_from(files.config("scheduler"), 50)
    assert schedule.prediction == prediction
    assert (schedule.alphas[-1] < 1e-6) == zero_snr
    assert (schedule.timesteps[0] == 999) == zero_snr
    assert fingerprint(files) != fingerprint(files_of(checkpoint, micro_sd)) or not (
        more or metadata
    )
    load_parts(files, CPU, torch.float32)


def test_the_oldest_text_encoder_names_load(
    checkpoint: Path, micro_sd: Path, tmp_path: Path
) -> None:
    path = changed(checkpoint, tmp_path, rename=("transformer.text_model.", "transformer."))
    old = load_parts(files_of(path, micro_sd), CPU, torch.float32).text_encoders[0].state_dict()
    new = (
        load_parts(files_of(checkpoint, micro_sd), CPU, torch.float32).text_encoders[0].state_dict()
    )
    assert all(torch.equal(old[k], new[k]) for k in new)


def test_a_checkpoint_without_vae_takes_another(
    checkpoint: Path, micro_sd: Path, tmp_path: Path
) -> None:
    path = changed(checkpoint, tmp_path, without="first_stage_model.")
    with refusal("no-vae", kind=ModelError):
        files_of(path, micro_sd)
    whole = load_file(checkpoint)
    alone = tmp_path / "vae.safetensors"
    save_file({k.removeprefix("first_stage_model."): v for k, v in whole.items()
               if k.startswith("first_stage_model.")}, alone)  # fmt: skip
    expected = load_parts(files_of(checkpoint, micro_sd), CPU, torch.float32).vae.state_dict()
    for vae in (micro_sd / "vae", micro_sd, alone):
        found = load_parts(
            files_of(path, micro_sd, vae=str(vae)), CPU, torch.float32
        ).vae.state_dict()
        assert all(torch.equal(found[k], expected[k]) for k in expected), vae


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"without": "cond_stage_model."}, "unet"),
        ({"without": "model.diffusion_model."}, "vae"),
        ({"more": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3)}},
         "channels"),
        ({"more": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 8, 3, 3)}},
         "channels"),
        ({"metadata": {"modelspec.prediction_type": "flow"}}, "prediction"),
        ({"more": {"something.new": MARK}}, "unknown-tensor"),
        ({"more": {"model.diffusion_model.out.2.scale_weight": MARK}}, "quantised"),
        ({"more": {"edm_vpred.sigma_max": MARK}}, "other-model"),
        ({"more": {"control_model.out.0.bias": MARK}}, "controlnet"),
        ({"rename": ("cond_stage_model.transformer.", "conditioner.embedders.0.model.")}, "refiner"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_by_name_when_it_is_added(
    checkpoint: Path, micro_sd: Path, tmp_path: Path, change: dict[str, Any], code: str
) -> None:
    path = changed(checkpoint, tmp_path, **change)
    with refusal(code, kind=ModelError) as caught:
        files_of(path, micro_sd)
    assert str(caught.value).startswith("changed.safetensors ")
    assert "damaged" not in str(caught.value)


def test_what_is_no_part_of_the_model_is_knowingly_ignored(
    checkpoint: Path, micro_sd: Path, tmp_path: Path
) -> None:
    more = {n: MARK for n in ("model_ema.decay", "betas", "sqrt_alphas_cumprod", "global_step",
                              "cond_stage_model.logit_scale", "posterior_variance", "logvar")}  # fmt: skip
    load_parts(files_of(changed(checkpoint, tmp_path, more=more), micro_sd), CPU, torch.float32)


def test_a_single_file_finds_the_standard_configuration_without_a_network(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    files = find_files(Registry().resolve(f'"{checkpoint}"'))
    assert files.config("unet")["cross_attention_dim"] == 768
    with refusal("misfit", kind=ModelError):  # the micro model is no SD 1.5
        load_parts(files, CPU, torch.float32)


PARAMETERS = {  # of the published models
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sd21-base": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480,
             "text_encoder_2": 694_659_840},
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_standard_configurations_are_those_of_the_published_models(name: str) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    for part, expected in PARAMETERS[name].items():
        config = json.loads((STANDARD / name / part / "config.json").read_text())
        with torch.device("meta"):
            if part.startswith("text"):
                kind = {"CLIPTextModel": CLIPTextModel}.get(
                    config["architectures"][0], CLIPTextModelWithProjection
                )
                module = kind(CLIPTextConfig(**config))
            else:
                module = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part].from_config(
                    config
                )
        assert sum(p.numel() for p in module.parameters()) == expected, part


def test_standard_tokenizer_is_clips() -> None:
    """Known ids of CLIP's vocabulary, and OpenCLIP's own padding."""
    files = SimpleNamespace(root=STANDARD / "sd15", is_sdxl=False,
                            config=lambda _part: {"hidden_size": 768}, spec=None)  # fmt: skip
    (tokenizer,) = _tokenizers(files)  # type: ignore[arg-type]
    ids = tokenizer("a photo of a cat", padding="max_length").input_ids
    assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert len(ids) == 77
    files = SimpleNamespace(root=STANDARD / "sd21", is_sdxl=False,
                            config=lambda _part: {"hidden_size": 1024}, spec=None)  # fmt: skip
    (tokenizer,) = _tokenizers(files)  # type: ignore[arg-type]
    assert tokenizer("x", padding="max_length").input_ids[3:5] == [0, 0]


def test_single_file_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"unet.x.lora_A.weight": torch.zeros(2)}, file)
    with refusal("lora", kind=ModelError):
        find_files(Registry().resolve(str(file)))
    sd2 = {"cond_stage_model.model.ln_final.bias": torch.zeros(2),
           "first_stage_model.post_quant_conv.bias": torch.zeros(2),
           "model.diffusion_model.out.2.bias": torch.zeros(2)}  # fmt: skip
    save_file(sd2, file)
    with refusal("prediction-unknown", kind=ModelError):
        find_files(Registry().resolve(str(file)))
    save_file(sd2, file, metadata={"modelspec.prediction_type": "v"})
    assert find_files(Registry().resolve(str(file))).config("unet")["sample_size"] == 96


def test_single_file_lacking_a_tensor(checkpoint: Path, micro_sd: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    spec = ModelSpec(name="cut", path=str(tmp_path / "cut.safetensors"), config=str(micro_sd))
    with refusal("misfit", kind=ModelError):
        load_parts(find_files(spec), CPU, torch.float32)
