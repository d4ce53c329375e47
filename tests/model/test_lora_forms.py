"""Every public LoRA form: fused weights equal to diffusers' for what diffusers reads, to the formula
of the tool that writes the form otherwise; and what is not understood is refused by name.
"""  # fmt: skip

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import save, save_file

from workbench.diffusion import model
from workbench.diffusion.lora import merged
from workbench.diffusion.lora_files import LoraCard, check, read, write
from workbench.diffusion.lora_format import module_name
from workbench.diffusion.model import Runtime
from workbench.editing.lora_library import LoraLibrary
from workbench.storage.history import Store

Tensor = torch.Tensor
State = dict[str, Tensor]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def micro(micro_sd: Path) -> Runtime:
    return model.load(str(micro_sd), device="cpu")


def noise(*shape: int, seed: int = 0, scale: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator) * scale


def layers(unet: Any, *, convolutions: bool = False) -> dict[str, Any]:
    """Attention projections, or every linear layer and convolution."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and (convolutions or name.endswith(ATTENTION))
    }


def halves(module: Any, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """lora_down and lora_up of a layer."""
    out, into, *kernel = module.weight.shape
    ones = [1] * len(kernel)
    return noise(rank, into, *kernel, seed=seed), noise(out, rank, *ones, seed=seed + 1)


def fused(unet: Any, file: Any, weight: float = 1.0) -> State:
    with merged(unet, file.weights, weight):
        return {k: v.detach().clone() for k, v in unet.state_dict().items()}


def by_diffusers(run: Runtime, path: Path, tmp_unet: Any) -> State:
    """The U-Net's weights after diffusers loaded and fused the file."""
    from diffusers import StableDiffusionPipeline

    (tokenizer, encoder), *_ = run._encoders
    pipe: Any = StableDiffusionPipeline(
        vae=run.vae, unet=tmp_unet, scheduler=None, text_encoder=copy.deepcopy(encoder),
        tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    if "lokr" in path.name:  # only the U-Net's own loader takes them
        pipe.unet.load_lora_adapter(str(path.parent), weight_name=path.name, prefix="unet")
        pipe.unet.fuse_lora()
    else:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        pipe.fuse_lora(components=["unet"])
    return {
        k.replace(".base_layer", ""): v
        for k, v in pipe.unet.state_dict().items()
        if "lora" not in k and "lokr" not in k
    }


def assert_same(ours: State, theirs: State, before: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    changed = 0
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name
        changed += not torch.equal(tensor, before[name])
    assert changed > 10


def peft(unet: Any, rank: int = 4, prefix: str = "unet.") -> State:
    made: State = {}
    for i, (name, module) in enumerate(layers(unet).items()):
        down, up = halves(module, rank, i)
        made[f"{prefix}{name}.lora_A.weight"], made[f"{prefix}{name}.lora_B.weight"] = down, up
    return made


def older(unet: Any) -> State:
    return {
        k.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): v
        for k, v in peft(unet).items()
    }


def kohya(
    unet: Any, *, convolutions: bool = False, dtype: torch.dtype = torch.float32, even: bool = True
) -> State:
    """kohya's names; `even`: one alpha for all layers (diffusers 0.42 loses others: their names in its
    alpha pattern are not the layers').
    """  # fmt: skip
    made: State = {}
    for i, (name, module) in enumerate(layers(unet, convolutions=convolutions).items()):
        flat = f"lora_unet_{name.replace('.', '_')}"
        down, up = halves(module, 4, i)
        made[f"{flat}.lora_down.weight"], made[f"{flat}.lora_up.weight"] = (
            down.to(dtype),
            up.to(dtype),
        )
        made[f"{flat}.alpha"] = torch.tensor(2.0 if even else 1.0 + i % 3)
    return made


def original_blocks(unet: Any) -> State:
    """kohya's names with the original blocks, as its SDXL trainer writes them; resnets too."""
    from test_models_single_file import unet_name

    made: State = {}
    for key, tensor in kohya(unet, convolutions=True, even=False).items():
        flat, _, rest = key.partition(".")
        name = next(n for n in layers(unet, convolutions=True)
                    if f"lora_unet_{n.replace('.', '_')}" == flat)  # fmt: skip
        if name.startswith(("conv_", "time_embedding")):
            continue
        original = unet_name(f"{name}.weight").removesuffix(".weight")
        made[f"lora_unet_{original.replace('.', '_')}.{rest}"] = tensor
    return made


def dora(unet: Any) -> State:
    made = peft(unet)
    for i, (name, module) in enumerate(layers(unet).items()):
        norm = torch.linalg.vector_norm(module.weight.detach().flatten(1), dim=1)
        made[f"unet.{name}.lora_magnitude_vector"] = norm * (1 + 0.1 * noise(len(norm), seed=i))
    return made


def bias(unet: Any) -> State:
    made = {k: v for k, v in peft(unet).items() if "to_out" in k}
    for k in [k for k in made if "lora_B" in k]:
        made[k.replace(".weight", ".bias")] = noise(len(made[k]))
    return made


def lokr(unet: Any) -> State:
    made: State = {}
    for i, (name, module) in enumerate(layers(unet).items()):
        out, into = module.weight.shape
        made[f"unet.{name}.lokr_w1"] = noise(4, 4, seed=i, scale=0.3)
        made[f"unet.{name}.lokr_w2"] = noise(out // 4, into // 4, seed=i + 1, scale=0.3)
    return made


def header(**config: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()}),
            "format": "pt"}  # fmt: skip


PATTERN = {
    "attn1.to_q": 8,
    "^mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 1,
    "to_v": 3.5,
}
READ_BY_DIFFUSERS: dict[str, tuple[Callable[[Any], State], dict[str, str] | None]] = {
    "peft": (peft, None),
    "older": (older, None),
    "kohya": (kohya, None),
    "kohya-convolutions": (lambda u: kohya(u, convolutions=True), None),
    "kohya-half": (lambda u: kohya(u, dtype=torch.float16), None),
    "kohya-bf16": (lambda u: kohya(u, dtype=torch.bfloat16), None),
    "alpha-in-header": (peft, header(r=4, lora_alpha=1, target_modules=list(ATTENTION),
                                     peft_type="LORA")),
    "alpha-patterns": (peft, header(r=4, lora_alpha=2, alpha_pattern=PATTERN, peft_type="LORA",
                                    target_modules=list(ATTENTION))),
    "rslora": (peft, header(r=4, lora_alpha=2, use_rslora=True, target_modules=list(ATTENTION))),
    "dora": (dora, None),
    "lora-bias": (bias, None),
    "lokr": (lokr, None),
}  # fmt: skip


@pytest.mark.parametrize("form", READ_BY_DIFFUSERS)
def test_fused_weights_are_those_of_diffusers(micro: Runtime, form: str, tmp_path: Path) -> None:
    make, metadata = READ_BY_DIFFUSERS[form]
    unet = copy.deepcopy(micro.unet)
    path = tmp_path / f"{form}.safetensors"
    save_file(make(micro.unet), path, metadata=metadata)
    file = read(path.read_bytes(), form, micro.unet.config.layers_per_block)
    ours = fused(micro.unet, file)
    theirs = by_diffusers(micro, path, unet)
    assert_same(ours, theirs, micro.unet.state_dict())


def test_ranks_that_differ_by_layer(micro: Runtime, tmp_path: Path) -> None:
    """`rank_pattern`: diffusers and we take the ranks from the tensors."""
    made: State = {}
    for i, (name, module) in enumerate(layers(micro.unet).items()):
        down, up = halves(module, 2 + i % 3, i)
        made[f"unet.{name}.lora_A.weight"], made[f"unet.{name}.lora_B.weight"] = down, up
    path = tmp_path / "ranks.safetensors"
    save_file(made, path)
    theirs = by_diffusers(micro, path, copy.deepcopy(micro.unet))
    assert_same(fused(micro.unet, read(path.read_bytes())), theirs, micro.unet.state_dict())


def test_original_block_names_are_the_same_lora(micro: Runtime) -> None:
    """diffusers' own mapping takes input_blocks_10 for input_blocks_1, so it is no judge here."""
    plain = read(save(kohya(micro.unet, convolutions=True, even=False))).weights
    kept = {k: v for k, v in plain.items() if not k.startswith(("unet.conv_", "unet.time_emb"))}
    file = read(save(original_blocks(micro.unet)))
    assert file.weights.keys() == kept.keys()
    assert all(torch.equal(file.weights[k], v) for k, v in kept.items())


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: k.replace("unet.", "base_model.model.").replace(".lora_A.", ".lora_A.default.")
        .replace(".lora_B.", ".lora_B.default."),
        lambda k: k.replace("unet.", "unet.unet."),
        lambda k: k.replace("unet.", ""),
        lambda k: "lycoris_" + k.removeprefix("unet.").replace(".lora_", "|").replace(".", "_")
        .replace("|A_weight", ".lora_down.weight").replace("|B_weight", ".lora_up.weight"),
        lambda k: "lora_unet." + k.removeprefix("unet.").replace(".lora_A", ".lora_down")
        .replace(".lora_B", ".lora_up"),
        lambda k: k.replace("to_out.0", "to_out").replace(".attn", ".attn").replace(".to_", ".processor.to_")
        .replace(".lora_A.", "_lora.down.").replace(".lora_B.", "_lora.up."),
    ],
    ids=["PEFT", "doubled", "bare", "LyCORIS", "OneTrainer", "processors"],
)  # fmt: skip
def test_other_namings_are_the_same_lora(micro: Runtime, rename: Callable[[str], str]) -> None:
    plain = peft(micro.unet)
    file = read(save({rename(k): v for k, v in plain.items()}))
    assert file.weights.keys() == plain.keys()
    assert all(torch.equal(file.weights[k], v) for k, v in plain.items())


def test_comfyui_names_original_blocks_with_dots(micro: Runtime) -> None:
    flat = original_blocks(micro.unet)
    made = {
        "diffusion_model." + k.removeprefix("lora_unet_").replace("_", "."): v
        for k, v in flat.items()
    }
    dotted = {k.replace(".lora.down.", ".lora_down.").replace(".lora.up.", ".lora_up."): v
              for k, v in made.items()}  # fmt: skip
    one, other = read(save(flat)), read(save(dotted))
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(other.weights[k], v) for k, v in one.weights.items())


def factors(module: Any, seed: int) -> State:
    out, into, *kernel = module.weight.shape
    inner = into * math.prod(kernel)
    return {"w1_a": noise(out, 3, seed=seed), "w1_b": noise(3, inner, seed=seed + 1),
            "w2_a": noise(out, 3, seed=seed + 2), "w2_b": noise(3, inner, seed=seed + 3)}  # fmt: skip


def formula_files(unet: Any) -> dict[str, tuple[State, Callable[[str, Tensor], Tensor | None]]]:
    """Forms that diffusers does not read: (file, W' of a layer by its tool's own formula)."""
    every = layers(unet, convolutions=True)
    flat = {name: f"lora_unet_{name.replace('.', '_')}" for name in every}
    seeds = {name: 10 * i for i, name in enumerate(every)}
    forms: dict[str, tuple[State, Callable[[str, Tensor], Tensor | None]]] = {}

    loha: State = {}
    for name, module in every.items():
        loha |= {f"{flat[name]}.hada_{k}": v for k, v in factors(module, seeds[name]).items()}
        loha[f"{flat[name]}.alpha"] = torch.tensor(1.5)

    def by_loha(name: str, w: Tensor) -> Tensor:
        f = factors(every[name], seeds[name])
        delta = (f["w1_a"] @ f["w1_b"]) * (f["w2_a"] @ f["w2_b"]) * (1.5 / 3)
        return w + delta.reshape(w.shape)

    forms["loha"] = (loha, by_loha)

    def kron_parts(module: Any, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        out, into, *kernel = module.weight.shape
        two = 1 if into % 2 else 2
        return (noise(2 if out % 2 == 0 else 1, two, seed=seed),
                noise(out // (2 if out % 2 == 0 else 1), 3, seed=seed + 1),
                noise(3, into // two * math.prod(kernel), seed=seed + 2))  # fmt: skip

    kron: State = {}
    for name, module in every.items():
        w1, a, b = kron_parts(module, seeds[name])
        kron |= {f"{flat[name]}.lokr_w1": w1, f"{flat[name]}.lokr_w2_a": a,
                 f"{flat[name]}.lokr_w2_b": b, f"{flat[name]}.alpha": torch.tensor(6.0)}  # fmt: skip

    def by_kron(name: str, w: Tensor) -> Tensor:
        w1, a, b = kron_parts(every[name], seeds[name])
        return w + (torch.kron(w1, a @ b) * (6.0 / 3)).reshape(w.shape)

    forms["lokr-decomposed"] = (kron, by_kron)

    uneven = kohya(unet, convolutions=True, even=False)

    def by_alpha(name: str, w: Tensor) -> Tensor:
        down, up, alpha = (uneven[f"{flat[name]}.{p}"] for p in
                           ("lora_down.weight", "lora_up.weight", "alpha"))  # fmt: skip
        return w + (up.flatten(1) @ down.flatten(1) * (float(alpha) / 4)).reshape(w.shape)

    forms["alphas-that-differ"] = (uneven, by_alpha)

    full = {f"{flat[n]}.diff": noise(*m.weight.shape, seed=seeds[n]) for n, m in every.items()}
    forms["full"] = (full, lambda n, w: w + full[f"{flat[n]}.diff"])

    tucker: State = {}
    kernels = {n: m for n, m in every.items() if m.weight.dim() == 4 and m.weight.shape[-1] == 3}
    for name, module in kernels.items():
        out, into = module.weight.shape[:2]
        tucker |= {f"{flat[name]}.lora_down.weight": noise(4, into, 1, 1, seed=seeds[name]),
                   f"{flat[name]}.lora_mid.weight": noise(4, 4, 3, 3, seed=seeds[name] + 1),
                   f"{flat[name]}.lora_up.weight": noise(out, 4, 1, 1, seed=seeds[name] + 2),
                   f"{flat[name]}.alpha": torch.tensor(2.0)}  # fmt: skip

    def by_tucker(name: str, w: Tensor) -> Tensor | None:
        if name not in kernels:
            return None
        down, mid, up = (tucker[f"{flat[name]}.lora_{p}.weight"] for p in ("down", "mid", "up"))
        # the three convolutions one after the other, on every unit input
        x = torch.eye(w.shape[1]).reshape(w.shape[1], w.shape[1], 1, 1)
        x = torch.nn.functional.pad(x, (1, 1, 1, 1))
        y = torch.nn.functional.conv2d(x, down)
        y = torch.nn.functional.conv2d(y, mid, padding=1)
        y = torch.nn.functional.conv2d(y, up)
        return w + 0.5 * y.flip(2, 3).transpose(0, 1)

    forms["locon-tucker"] = (tucker, by_tucker)

    for axis in (0, 1):
        scaled = kohya(unet)
        for name, module in layers(unet).items():
            norm = torch.linalg.vector_norm(module.weight.detach(), dim=1 - axis, keepdim=True)
            scaled[f"{flat[name]}.dora_scale"] = norm * 1.1

        def by_dora(
            name: str, w: Tensor, axis: int = axis, scaled: State = scaled
        ) -> Tensor | None:
            if f"{flat[name]}.dora_scale" not in scaled:
                return None
            down, up = (scaled[f"{flat[name]}.lora_{p}.weight"] for p in ("down", "up"))
            v = w + up @ down * (float(scaled[f"{flat[name]}.alpha"]) / 4)
            norm = torch.linalg.vector_norm(v, dim=1 - axis, keepdim=True)
            return v * scaled[f"{flat[name]}.dora_scale"] / norm

        forms["dora-kohya-" + ("out", "in")[axis]] = (scaled, by_dora)
    return forms


@pytest.mark.parametrize(
    "form",
    [
        "alphas-that-differ",
        "loha",
        "lokr-decomposed",
        "full",
        "locon-tucker",
        "dora-kohya-out",
        "dora-kohya-in",
    ],
)
def test_fused_weights_are_those_of_the_formula(micro: Runtime, form: str) -> None:
    tensors, expected = formula_files(micro.unet)[form]
    file = read(save(tensors), form, micro.unet.config.layers_per_block)
    check(file, micro.unet, name=form, model="x", style=True)
    ours = fused(micro.unet, file)
    off = fused(micro.unet, file, 0.0)
    changed = 0
    for name, module in layers(micro.unet, convolutions=True).items():
        weight = module.weight.detach()
        want = expected(name, weight)
        assert torch.allclose(
            ours[f"{name}.weight"], weight if want is None else want, atol=1e-5
        ), name
        assert torch.allclose(off[f"{name}.weight"], weight, atol=1e-6), name
        changed += want is not None
    assert changed > 5


def test_norms_and_biases_of_a_full_difference(micro: Runtime) -> None:
    name = "down_blocks.0.resnets.0.norm1"
    norm = micro.unet.get_submodule(name)
    w, b = noise(*norm.weight.shape), noise(*norm.bias.shape)
    flat = "lora_unet_" + name.replace(".", "_")
    file = read(save({f"{flat}.w_norm": w, f"{flat}.b_norm": b}))
    ours = fused(micro.unet, file, 0.5)
    assert torch.allclose(ours[f"{name}.weight"], norm.weight.detach() + 0.5 * w)
    assert torch.allclose(ours[f"{name}.bias"], norm.bias.detach() + 0.5 * b)


def test_float8_is_read(micro: Runtime) -> None:
    full = kohya(micro.unet)
    small = {k: v.to(torch.float8_e4m3fn) for k, v in full.items()}
    file = read(save(small))
    again = read(save({k: v.float() for k, v in small.items()}))
    assert all(torch.equal(file.weights[k], v) for k, v in again.weights.items())


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_dora_survives_an_export(micro: Runtime, layout: str) -> None:
    file = read(save(dora(micro.unet)))
    again = read(write(file.weights, LoraCard(), layout))
    one, other = fused(micro.unet, file), fused(micro.unet, again)
    assert all(torch.allclose(one[k], v, atol=1e-6) for k, v in other.items())


@pytest.mark.parametrize("form", ["loha", "lokr-decomposed", "full"])
def test_what_diffusers_has_no_form_for_is_exported_in_kohya_names_only(
    micro: Runtime, form: str
) -> None:
    file = read(save(formula_files(micro.unet)[form][0]))
    with refusal("layout", "layout"):
        write(file.weights, LoraCard())
    one = fused(micro.unet, file)
    other = fused(micro.unet, read(write(file.weights, LoraCard(), "kohya")))
    assert all(torch.allclose(one[k], v, atol=1e-6) for k, v in other.items())


Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PLAIN = {f"unet.{Q}.lora_A.weight": noise(4, 16), f"unet.{Q}.lora_B.weight": noise(16, 4)}
FLAT = "lora_unet_" + Q.replace(".", "_")


@pytest.mark.parametrize(
    ("more", "metadata", "code"),
    [
        ({f"unet.{Q}.lora_C.weight": noise(2, 2)}, {}, "unknown-tensor"),
        ({"unet.elsewhere.lora_A.weight": noise(2, 2)}, {}, "unknown-tensor"),
        ({"some.bias": noise(2)}, {}, "unknown-tensor"),
        ({f"{FLAT}.oft_blocks": noise(2, 2)}, {}, "not-applied"),
        ({f"{FLAT}.a1.weight": noise(2, 2)}, {}, "not-applied"),
        ({"lora_controlnet": torch.zeros(())}, {}, "not-applied"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": noise(2, 2)}, {},
         "other-architecture"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": noise(2, 2)}, {},
         "other-architecture"),
        ({f"unet.{Q.replace('to_q', 'to_k')}.lora_A.weight": noise(4, 16)}, {}, "half"),
        ({f"unet.{Q.replace('to_q', 'to_k')}.dora_scale": noise(16, 1)}, {}, "half"),
        ({f"{FLAT}.lora_down.weight": noise(4, 16)}, {}, "twice"),
        ({f"unet.{Q.replace('to_q', 'to_k')}.lora_A.weight": torch.zeros(0, 16),
          f"unet.{Q.replace('to_q', 'to_k')}.lora_B.weight": torch.zeros(16, 0)}, {}, "rank-zero"),
        ({f"unet.{Q.replace('to_q', 'to_k')}.lora_A.weight": noise(4, 16) * math.inf}, {}, "not-finite"),
        ({f"unet.{Q.replace('to_q', 'to_k')}.lora_A.weight": torch.zeros(4, 16, dtype=torch.int8)}, {},
         "quantised"),
        ({}, header(use_qalora=True), "metadata"),
        ({}, header(init_lora_weights="pissa"), "metadata"),
        ({}, header(lora_alpha="four"), "metadata"),
        ({}, header(alpha_pattern={"(a+)+$": 2}), "metadata"),
        ({}, {"lora_adapter_metadata": "{"}, "metadata"),
        ({f"unet.{Q}.alpha": torch.tensor(2.0)}, header(lora_alpha=3), "metadata"),
        ({}, {"network_scaling_factor": "8"}, "metadata"),
        ({}, {"strength": "0.5"}, "metadata"),
        ({}, {"folded": "true"}, "metadata"),
        ({}, {"layers": '{"mid": 2}'}, "metadata"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(
    more: State, metadata: dict[str, str], code: str
) -> None:
    read(save(PLAIN))
    with refusal(code) as caught:
        read(save({**PLAIN, **more}, metadata=metadata or None), "mine")
    assert str(caught.value).startswith("mine ")
    assert str(caught.value).endswith(".")
    assert "damaged" not in str(caught.value)


KOHYA_HEADER = {
    "ss_network_alpha": "8.0", "ss_network_args": '{"conv_dim": 4}', "sshs_model_hash": "1f",
    "modelspec.title": "x", "modelspec.resolution": "512x512", "ot_branch": "main", "epoch": "3",
    "training_info": '{"step": 10}', "software": '{"name": "ai-toolkit"}', "format": "pt",
    "sd_merge_recipe": "{}", "workflow": "{}", "license": "mit", "workbench": "{",
}  # fmt: skip


def test_a_header_is_accounted_for() -> None:
    assert not read(save(PLAIN, metadata=KOHYA_HEADER)).notices
    (told,) = read(save(PLAIN, metadata={**KOHYA_HEADER, "greetings": "from here"})).notices
    assert told.code == "header-unknown"
    assert "greetings" in told
    for said in ({"modelspec.prediction_type": "v"}, {"ss_v_parameterization": "True"}):
        assert [n.code for n in read(save(PLAIN, metadata=said)).notices] == ["v-prediction"]


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 2},
        {"lora_alpha": 2, "use_rslora": True},
        {"lora_alpha": 8, "use_dora": True},
        {"lora_alpha": 3, "rank_pattern": {"attn1.to_q": 2, "mid_block.*to_v": 6},
         "alpha_pattern": {"attn1.to_q": 8, "mid_block.*to_v": 1}},
    ],
    ids=["alpha", "rslora", "dora", "patterns"],
)  # fmt: skip
def test_a_folder_of_peft_is_what_peft_makes_of_it(
    micro: Runtime, options: dict[str, Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, target_modules=list(ATTENTION), **options)
    made: Any = get_peft_model(copy.deepcopy(micro.unet), config)
    torch.manual_seed(0)
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
        if "magnitude" in name:
            weight.data *= 1 + 0.1 * torch.rand_like(weight)
    folder = tmp_path / "mine"
    made.save_pretrained(folder)
    again: Any = PeftModel.from_pretrained(copy.deepcopy(micro.unet), folder)
    theirs = again.merge_and_unload().state_dict()
    with contextlib.closing(Store(tmp_path / "history")) as store:
        library = LoraLibrary(tmp_path / "loras", store)
        for given in (folder, folder / "adapter_model.safetensors"):
            ref = library.reference(str(given))
            assert ref.name == "mine"
            file = read(store.blob(ref.id))
            assert not file.notices
            assert_same(fused(micro.unet, file), theirs, micro.unet.state_dict())
        (folder / "adapter_config.json").write_text("[", encoding="utf-8")
        with refusal("metadata"):
            library.get(str(folder))
        (folder / "adapter_config.json").unlink()
        assert [n.code for n in read(library.get(str(folder))).notices] == ["alpha-unknown"]
        (folder / "adapter_model.safetensors").unlink()
        with refusal("no-lora"):
            library.get(str(folder))


def test_a_text_encoder_part_is_said_plainly(micro: Runtime) -> None:
    text = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": noise(4, 32)}
    file = read(save({**PLAIN, **text}))
    assert [n.code for n in file.notices] == ["text-part"]
    said = check(file, micro.unet, name="mine", model="x", style=True)
    assert "text-part" in [n.code for n in said]
    with refusal("text-only"):
        read(save(text))


def test_a_peft_file_without_its_alpha_says_so() -> None:
    plain = {k.replace("unet.", "base_model.model."): v for k, v in PLAIN.items()}
    assert [n.code for n in read(save(plain)).notices] == ["alpha-unknown"]
    assert read(save(PLAIN)).notices == ()


def test_where_a_file_comes_from_is_no_reason_to_refuse_it() -> None:
    about = {"ss_network_alpha": "1", "ss_network_module": "x", "modelspec.title": "x", "date": "today",
             "author": "somebody"}  # fmt: skip
    assert read(save(PLAIN, metadata=about)).rank == 4


def test_strength_goes_linearly_from_off_to_full(micro: Runtime) -> None:
    file = read(save(dora(micro.unet)))
    none, half, full = (fused(micro.unet, file, w) for w in (0.0, 0.5, 1.0))
    for name in none:
        assert torch.allclose(half[name], (none[name] + full[name]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("unet.mid_block.attentions.0.proj_in", "mid_block.attentions.0.proj_in"),
        ("lora_unet_input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("lora_unet_input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("lora_unet_middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj"),
        ("diffusion_model.time_embed.2", "time_embedding.linear_2"),
        ("diffusion_model.label_emb.0.0", "add_embedding.linear_1"),
        ("lora_unet_input_blocks_0_0", "conv_in"),
        ("lora_unet_out_2", "conv_out"),
        ("lora_unet_double_blocks_0_img_attn_proj", None),
        ("unet.down_blocks.0.unknown_thing", None),
        ("", None),
    ],
)
def test_module_names(text: str, name: str | None) -> None:
    assert module_name(text) == name


def test_every_layer_of_a_unet_has_a_name(micro: Runtime) -> None:
    for name in layers(micro.unet, convolutions=True):
        assert module_name("unet." + name) == name
        assert module_name("lora_unet_" + name.replace(".", "_")) == name
