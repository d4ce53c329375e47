"""The corpus: files and requests of real people, each with the verdict that `data/cases.toml` gives.

`data/cases/` holds small files that failed once; the others are made here. All go through the
functions that the page and the command line call.
"""

from __future__ import annotations

import io
import json
import struct
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from workbench.canvas.checklist import check_prompt, check_request
from workbench.cli.parsers import read_points
from workbench.core.errors import WorkbenchError
from workbench.core.request import EditRequest, ImageAsset, Point, PointPair
from workbench.diffusion.lora_files import read
from workbench.diffusion.registry import ModelSpec
from workbench.diffusion.registry.files import find_files
from workbench.imaging import decode, opening

DATA = Path(__file__).resolve().parents[1] / "data"
TABLE: list[dict[str, Any]] = tomllib.loads((DATA / "cases.toml").read_text("utf-8"))["case"]
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + Q.replace(".", "_")
PLAIN = {f"unet.{Q}.lora_A.weight": torch.ones(4, 16), f"unet.{Q}.lora_B.weight": torch.ones(16, 4)}
MARK = torch.zeros(1)
CHECKPOINT = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 4, 3, 3),
    "model.diffusion_model.out.2.bias": MARK,
    "first_stage_model.post_quant_conv.bias": MARK,
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": MARK,
}


def picture(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (80, 60), **how: Any
) -> bytes:
    rng = np.random.default_rng(3)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size)
    out = io.BytesIO()
    smooth.convert(mode).save(out, kind, **how)
    return out.getvalue()


def disc(low: int, high: int, kind: str = "PNG", mode: str = "L", **how: Any) -> bytes:
    y, x = np.mgrid[:256, :256]
    grey = np.where((x - 128) ** 2 + (y - 128) ** 2 < 50**2, high, low).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(grey).convert(mode).save(out, kind, **how)
    return out.getvalue()


def lora(more: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return bytes(save({**PLAIN, **more}, metadata=metadata))


def alone(tensors: dict[str, torch.Tensor]) -> bytes:
    return bytes(save(tensors))


def checkpoint(
    more: dict[str, torch.Tensor] | None = None,
    without: str = "?",
    metadata: dict[str, str] | None = None,
) -> bytes:
    tensors = {k: v for k, v in CHECKPOINT.items() if not k.startswith(without)}
    whole = {k: v.clone() for k, v in {**tensors, **(more or {})}.items()}
    return bytes(save(whole, metadata=metadata))


def header(**config: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})}


def twelve_bits() -> bytes:
    raw = bytearray(picture("JPEG"))
    raw[raw.index(b"\xff\xc0") + 4] = 12
    return bytes(raw)


MADE: dict[str, Callable[[], bytes]] = {
    # LoRAs
    "plain": lambda: lora({}),
    "kohya": lambda: alone({f"{FLAT}.lora_down.weight": torch.ones(4, 16),
                            f"{FLAT}.lora_up.weight": torch.ones(16, 4), f"{FLAT}.alpha": MARK}),
    "half precision": lambda: alone({k: v.half() for k, v in PLAIN.items()}),
    "bfloat16": lambda: alone({k: v.bfloat16() for k, v in PLAIN.items()}),
    "with text part": lambda: lora({"lora_te_text_model_x.lora_down.weight": MARK}),
    "text only": lambda: alone({"lora_te_text_model_x.lora_down.weight": MARK}),
    "PEFT without alpha": lambda: alone({k.replace("unet.", "base_model.model."): v
                                         for k, v in PLAIN.items()}),
    "unknown part": lambda: lora({f"unet.{Q}.lora_C.weight": MARK}),
    "unknown layer": lambda: lora({"unet.elsewhere.lora_A.weight": torch.ones(2, 2)}),
    "OFT": lambda: lora({f"{FLAT}.oft_blocks": MARK}),
    "GLoRA": lambda: lora({f"{FLAT}.a1.weight": MARK}),
    "Flux LoRA": lambda: alone({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": MARK}),
    "SD 3 LoRA": lambda: alone({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": MARK}),
    "half a layer": lambda: lora({f"unet.{Q[:-1]}k.lora_A.weight": torch.ones(4, 16)}),
    "NaN": lambda: lora({f"unet.{Q[:-1]}k.lora_A.weight": torch.full((4, 16), torch.nan)}),
    "int8": lambda: lora({f"unet.{Q[:-1]}k.lora_A.weight": torch.ones(4, 16, dtype=torch.int8)}),
    "PiSSA": lambda: lora({}, header(init_lora_weights="pissa")),
    "two strengths": lambda: lora({f"unet.{Q}.alpha": torch.tensor(2.0)}, header(lora_alpha=3)),
    "unknown scale": lambda: lora({}, {"network_scaling": "8"}),
    "kohya's header": lambda: lora({}, {"ss_network_dim": "4", "modelspec.title": "x", "author": "y"}),
    "cut LoRA": lambda: lora({})[:-7],
    "a checkpoint as LoRA": lambda: checkpoint(),
    "a web page": lambda: b"<!DOCTYPE html><html><title>Sign in</title></html>",
    "an access error": lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "an API error": lambda: b'{"error":"Invalid username or password."}',
    "a pickle": lambda: b"\x80\x02}q\x00.",
    "a torch zip": lambda: b"PK\x03\x04" + bytes(60),
    "zeros": lambda: bytes(9000),
    "nothing": lambda: b"",
    "GGUF": lambda: b"GGUF\3\0\0\0" + bytes(60),
    "text": lambda: b"hello, this is a readme of a model\n" * 5,
    # checkpoints
    "whole checkpoint": lambda: checkpoint(),
    "v-prediction": lambda: checkpoint({"v_pred": MARK}),
    "zero terminal SNR": lambda: checkpoint({"v_pred": MARK, "ztsnr": MARK}),
    "modelspec v": lambda: checkpoint(metadata={"modelspec.prediction_type": "v"}),
    "flow matching": lambda: checkpoint(metadata={"modelspec.prediction_type": "flow"}),
    "no VAE": lambda: checkpoint(without="first_stage_model."),
    "U-Net only": lambda: checkpoint(without="cond_stage_model."),
    "VAE only": lambda: alone({"first_stage_model.decoder.conv_in.weight": MARK}),
    "inpainting": lambda: checkpoint({"model.diffusion_model.input_blocks.0.0.weight":
                                      torch.zeros(16, 9, 3, 3)}),
    "InstructPix2Pix": lambda: checkpoint({"model.diffusion_model.input_blocks.0.0.weight":
                                           torch.zeros(16, 8, 3, 3)}),
    "old text names": lambda: checkpoint({"cond_stage_model.transformer.embeddings.x": MARK},
                                         "cond_stage_model."),
    "EMA": lambda: checkpoint({"model_ema.decay": MARK, "betas": MARK, "global_step": MARK}),
    "SD 2.x, silent": lambda: checkpoint({"cond_stage_model.model.ln_final.bias": MARK},
                                         "cond_stage_model."),
    "refiner": lambda: checkpoint({"conditioner.embedders.0.model.x": MARK}, "cond_stage_model."),
    "scaled fp8": lambda: checkpoint({"model.diffusion_model.out.2.scale_weight": MARK}),
    "unknown tensor": lambda: checkpoint({"something.new": MARK}),
    "ControlNet": lambda: alone({"control_model.x": MARK}),
    "Flux checkpoint": lambda: alone({"double_blocks.0.img_attn.proj.weight": MARK}),
    "embedding": lambda: alone({"emb_params": torch.ones(2, 768)}),
    "a LoRA as model": lambda: lora({}),
    "too long": lambda: checkpoint() + b"xyz",
    "header only": lambda: struct.pack("<Q", 10**7) + b'{"model' + bytes(600),
    # pictures
    "16-bit": lambda: picture("PNG", "I;16"),
    "CMYK JPEG": lambda: picture("JPEG", "CMYK"),
    "progressive": lambda: picture("JPEG", progressive=True),
    "12-bit JPEG": twelve_bits,
    "AVIF": lambda: picture("AVIF"),
    "JPEG 2000": lambda: picture("JPEG2000"),
    "float TIFF": lambda: picture("TIFF", "F"),
    "LZW TIFF": lambda: picture("TIFF", compression="tiff_lzw"),
    "HEIC": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80),
    "JPEG XL": lambda: b"\xff\x0a" + bytes(80),
    "Photoshop": lambda: b"8BPS\0\1" + bytes(80),
    "raw": lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(80),
    "video": lambda: b"\0\0\0\x18ftypisom" + bytes(80),
    "PDF": lambda: b"%PDF-1.7\n" + bytes(80),
    "half a JPEG": lambda: picture("JPEG", size=(400, 300))[:2500],
    "half a PNG": lambda: picture()[:400],
    "JPEG without end": lambda: picture("JPEG")[:-2],
    "tiny": lambda: picture(size=(8, 8)),
    "a strip": lambda: picture(size=(900, 20)),
    # masks, a disc of 12% on 256x256
    "disc": lambda: disc(0, 255),
    "disc 16..235": lambda: disc(16, 235),
    "disc 0..1": lambda: disc(0, 1),
    "disc in JPEG": lambda: disc(0, 255, "JPEG", quality=40),
    "disc in lossy WebP": lambda: disc(0, 255, "WEBP", "RGB", quality=30),
    "disc on grey": lambda: disc(60, 255),
    "one bit": lambda: disc(0, 255, mode="1"),
    "palette GIF": lambda: disc(0, 255, "GIF", "P"),
    "inverted disc": lambda: disc(255, 0),
    "photograph": lambda: picture(size=(256, 256)),
}  # fmt: skip


def arrow(text: str) -> PointPair:
    hx, hy, tx, ty = (float(v) for v in text.split(","))
    return PointPair(Point(hx, hy), Point(tx, ty))


def found(case: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """(code, facts) of a case: "" when it is taken."""
    name = case.get("file", case.get("made", ""))
    if case["as"] == "prompt":
        return "", {"codes": [f.code.value for f in check_prompt(case["text"])]}
    if case["as"] == "points":
        (folder / "p.json").write_text(case["text"])
        return "", {"pairs": len(read_points(folder / "p.json"))}
    if case["as"] == "request":
        image = ImageAsset(id="wb1:0", width=256, height=256)
        pairs = tuple(arrow(a) for a in case["arrows"])
        mask = decode.decode_mask(raw_of(case["mask"]), 256, 256) if "mask" in case else None
        found = check_request(EditRequest(image=image, pairs=pairs), mask)
        return "", {"codes": [f.code.value for f in found if f.level == "warn"]}
    raw = raw_of(name)
    if case["as"] == "lora":
        file = read(raw, name)
        return "", {"notices": [n.code for n in file.notices], "tensors": len(file.weights)}
    if case["as"] == "picture":
        picture = decode.decode(raw, name)
        return "", {"size": [picture.width, picture.height]}
    if case["as"] == "mask":
        mask, _notices = decode.read_mask(raw, *case.get("size", (256, 256)), name)
        return "", {"share": round(float(mask.mean()), 2)}
    path = folder / "model.safetensors"
    path.write_bytes(raw)
    files = find_files(ModelSpec(name="m", path=str(path), config=case.get("config", "")))
    config = files.config("scheduler")
    return "", {"prediction": config["prediction_type"], "zero_snr": files.zero_snr}


def raw_of(name: str) -> bytes:
    return MADE[name]() if name in MADE else (DATA / "cases" / name).read_bytes()


def label(case: dict[str, Any]) -> str:
    return f"{case['as']}: {case.get('file') or case.get('made') or case.get('text') or case.get('arrows')}"


@pytest.fixture(scope="module", autouse=True)
def no_heif(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The table is that of a machine without pillow-heif, whatever is installed on this one."""
    folder = tmp_path_factory.mktemp("no-heif")
    folder.joinpath("pillow_heif.py").write_text("raise ImportError\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        opening.close()
        yield
        opening.close()


@pytest.mark.parametrize("case", TABLE, ids=label)
def test_verdict(case: dict[str, Any], tmp_path: Path) -> None:
    facts: dict[str, Any] = {}
    try:
        code, facts = found(case, tmp_path)
    except WorkbenchError as exc:
        code = exc.code
        text = str(exc)
        assert text.endswith(".")
        assert "\n" not in text
        assert "damaged" not in text
        assert len(text) < 400
    assert code == case.get("code", "")
    expected = case.get("expect", {})
    assert {k: facts.get(k) for k in expected} == expected


def test_the_table_is_whole() -> None:
    files = {p.name for p in (DATA / "cases").iterdir()}
    named = {c.get("file") for c in TABLE} | {c.get("mask") for c in TABLE}
    assert files <= named
    assert set(MADE) <= {c.get("made") for c in TABLE} | {c.get("mask") for c in TABLE}
    assert sum("file" not in c for c in TABLE) >= 60
