"""Each architecture from the command line: show, train, save the LoRA, drag, reload the LoRA, generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny_models import KINDS

from workbench.cli import main
from workbench.imaging import decode

SMALL = ["--working-size", "64", "--lora-steps", "2", "--lora-rank", "2", "--lora-batch-size", "1",
         "--inversion-steps", "4", "--inversion-strength", "0.5", "--device", "cpu", "--quiet",
         "--json"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way(
    tiny_model: Callable[[str], Path],
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["--model", str(tiny_model(kind))]
    picture, lora = tmp_path / "robot.png", tmp_path / "robot.safetensors"
    y, x = np.mgrid[:64, :72]
    rgb = np.stack([x * 3, y * 4, (x + y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(picture)

    def call(*args: str) -> Any:
        assert main(list(args)) == 0
        return json.loads(capsys.readouterr().out)

    trained = call("train", str(picture), "--prompt", "a robot", "-o", str(lora), "--name", "mine",
                   "--reconstruction", str(tmp_path / "again.png"), *model, *SMALL)  # fmt: skip
    assert len(trained["losses"]) == 2
    assert decode.decode((tmp_path / "again.png").read_bytes()).width == 72
    assert load_file(lora)

    edit = ["edit", str(picture), "--pair", "24,30:40,30", "--whole", "--prompt", "a robot",
            *model, *SMALL, "--drag-steps", "2", "--drag-refine"]  # fmt: skip
    own = call(*edit, "-o", str(tmp_path / "own.png"))
    assert own["status"] == "done"
    assert {"lora", "invert"} <= set(own["result"]["cached"])
    assert len(own["result"]["losses"]) > 0
    named = call(*edit, "-o", str(tmp_path / "named.png"), "--lora", "mine")
    assert named["result"]["image"] == own["result"]["image"]  # saved and read again: the same
    further = call(
        "train", str(picture), "--prompt", "a robot", "--from", str(lora), *model, *SMALL
    )
    assert further["lora_file"] is not None

    made = call("generate", "a robot", "-o", str(tmp_path), "--generate-steps", "2",
                "--generate-width", "64", "--generate-height", "64", *model,
                "--device", "cpu", "--quiet", "--json")  # fmt: skip
    assert decode.decode(Path(made["pictures"][0]["file"]).read_bytes()).width == 64
