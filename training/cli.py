"""The commands `scenes`, `train`, `photos` and `evaluate` of `python -m training`.

Parsing imports no torch; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from training.config import NAME, STAGES, TrainOptions
from workbench.core.errors import BadInput, WorkbenchError

WEIGHTS = Path(__file__).resolve().parents[1] / "workbench" / "weights" / NAME


def add_parsers(subparsers: Any) -> None:
    """Add the three commands to an argparse subparsers object; each sets `run`.

    `run(arguments)` returns the exit code and raises `WorkbenchError`.
    """
    _add_scenes(subparsers)
    _add_train(subparsers, with_photos=False)
    _add_train(subparsers, with_photos=True)
    _add_evaluate(subparsers)


def _add_scenes(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "scenes", help="draw a contact sheet of scenes", formatter_class=_Formatter
    )
    parser.add_argument("--out", type=Path, default=Path("scenes.png"), help="PNG to write")
    parser.add_argument("--count", type=int, default=24, help="scenes, 1 to 1000")
    parser.add_argument("--columns", type=int, default=6, help="scenes in a row, 1 to 100")
    parser.add_argument("--seed", type=int, default=0, help="which scenes")
    parser.add_argument("--kind", action="append", help="only this kind; may be repeated")
    parser.add_argument("--captions", action="store_true", help="also list the captions")
    parser.set_defaults(run=run_scenes)


def _add_train(subparsers: Any, *, with_photos: bool) -> None:
    """`photos FOLDER` trains on photographs and scenes, `train` on scenes alone."""
    defaults = TrainOptions()
    parser = subparsers.add_parser(
        "photos" if with_photos else "train",
        help="train on a folder of pictures and on scenes" if with_photos else "train on scenes",
        usage="%(prog)s FOLDER [options]" if with_photos else "%(prog)s [options]",
        epilog="Examples: %(prog)s --minutes 10 (from nothing); %(prog)s --minutes 60 --from "
        f"{WEIGHTS.relative_to(WEIGHTS.parents[2])} --out better (further); torchrun "
        "--nproc-per-node 4 -m training ... (four GPUs).",
        description="Stages: vae (autoencoder), bank (latents of all photographs and many scenes), "
        "unet (U-Net and text encoder), export (write the diffusers folder). Each can be run by "
        "itself; state is kept in --work. Minutes are wall-clock time of this run.",
        formatter_class=_Formatter,
    )
    if with_photos:
        parser.add_argument(
            "photos", type=Path, metavar="FOLDER", help="pictures and their captions.jsonl"
        )
        for name, value, text in (
            ("--photo-share", defaults.photo_share, "of the pictures in a batch"),
            ("--adversary-share", defaults.adversary_share, "of the autoencoder's time"),
        ):
            parser.add_argument(name, type=float, default=value, metavar="S", help=text)
        parser.add_argument(
            "--bank-variants", type=int, default=defaults.bank_variants, metavar="N",
            help="of each photograph in the bank: mirrored, cut closer",
        )  # fmt: skip
    else:
        parser.set_defaults(
            photos=None, photo_share=defaults.photo_share,
            adversary_share=defaults.adversary_share, bank_variants=defaults.bank_variants,
        )  # fmt: skip
    add = parser.add_argument
    add("--stage", nargs="+", choices=(*STAGES, "all"), default=["all"], help="what to run")
    add("--minutes", type=float, metavar="M",
        help="all stages together: 40 %% vae, 12 %% bank, 48 %% unet")  # fmt: skip
    for stage, value in (
        ("vae", defaults.vae_minutes),
        ("bank", defaults.bank_minutes),
        ("unet", defaults.unet_minutes),
    ):
        add(f"--{stage}-minutes", type=float, default=value, metavar="M", help="of this stage")
    for stage in ("vae", "unet"):
        add(f"--{stage}-total-minutes", type=float, metavar="M",
            help="learning-rate schedule over several runs")  # fmt: skip
    add("--batch", type=int, metavar="N", help="U-Net batch; default 256 on a GPU, 24 on a CPU")
    add("--vae-batch", type=int, metavar="N", help="default 128 on a GPU, 8 on a CPU")
    add("--lr", type=float, default=defaults.unet_lr, metavar="X", help="U-Net learning rate")
    add("--vae-lr", type=float, default=defaults.vae_lr, metavar="X",
        help="autoencoder learning rate")  # fmt: skip
    add(
        "--bank-scenes", type=int, default=defaults.bank_scenes, metavar="N", help="at most so many"
    )
    add("--keep-bank", action="store_true", help="store the latent bank in --work")
    add("--sheet-every", type=float, default=defaults.sheet_every, metavar="S",
        help="seconds between sheets of samples in --work; 0: none")  # fmt: skip
    add("--seed", type=int, default=defaults.seed, metavar="N", help="0 to 999999")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1 ...")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="auto: bf16 where it is faster")  # fmt: skip
    add("--no-compile", action="store_true", help="do not try torch.compile")
    add("--save-every", type=float, default=defaults.save_every, metavar="S",
        help="seconds between checkpoints")  # fmt: skip
    add("--out", type=Path, default=WEIGHTS, metavar="FOLDER", help="diffusers folder to write")
    add("--work", type=Path, default=defaults.work, metavar="FOLDER", help="folder of checkpoints")
    add("--resume", action="store_true", help="go on from the checkpoints in --work")
    add("--from", dest="source", type=Path, metavar="FOLDER",
        help="start from the weights of this folder")  # fmt: skip
    parser.set_defaults(run=run_train)


def _add_evaluate(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure the model and write its card",
        formatter_class=_Formatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=WEIGHTS, help="diffusers folder")
    add("--scenes", type=int, default=200, help="held-out scenes for PSNR and denoising loss")
    add("--samples", type=int, default=120, help="pictures drawn from captions")
    add("--steps", type=int, default=40, help="DDIM steps, 1 to 1000")
    add("--guidance", type=float, default=5.0, help="classifier-free guidance scale")
    add("--classifier-seconds", type=float, help="default 60 on a GPU, 300 on a CPU")
    add("--seed", type=int, default=0, help="of the samples")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--photos", type=Path, metavar="FOLDER", help="also measure its held-out pictures")
    add("--sheet", type=Path, help="PNG of 48 samples; another one of reconstructions beside it")
    parser.set_defaults(run=run_evaluate)


class _Formatter(argparse.HelpFormatter):
    """Shows every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        value = action.default
        if value is None or value is False or value == argparse.SUPPRESS:
            return action.help or ""
        if isinstance(value, Path) and value.is_relative_to(WEIGHTS.parents[2]):
            value = value.relative_to(WEIGHTS.parents[2])  # from the workbench's own folder
        shown = " ".join(value) if isinstance(value, list) else value
        return f"{action.help} [default {shown}]"


def run_scenes(arguments: argparse.Namespace) -> int:
    """Draw a contact sheet of scenes."""
    import torch

    from training import scenes
    from training.samples import contact_sheet

    if not 1 <= arguments.count <= 1000:
        raise BadInput(
            f"--count is {arguments.count}; give 1 to 1000 scenes.",
            code="out-of-range",
            field="--count",
        )
    if arguments.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise BadInput(
            f"{arguments.out.name!r:.80} is not a picture's name; end it in .png.", code="bad-name"
        )
    if not 1 <= arguments.columns <= 100:
        raise BadInput(
            f"--columns is {arguments.columns}; give 1 to 100.",
            code="out-of-range",
            field="--columns",
        )
    kinds = tuple(arguments.kind or scenes.KINDS)
    for kind in kinds:
        if kind not in scenes.KINDS:
            raise BadInput(
                f"Kind {kind!r} is unknown; choose from {', '.join(scenes.KINDS)}.",
                code="unknown-name",
                field="--kind",
            )
    batch = scenes.sample_batch(arguments.count, arguments.seed, kinds)
    parts = [scenes.render(batch[i : i + 32]) for i in range(0, len(batch), 32)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(torch.cat(parts), arguments.columns).save(arguments.out)
    if arguments.captions:
        sys.stdout.writelines(f"{scene.seed}\t{scene.kind}\t{scene.caption}\n" for scene in batch)
    return 0


def run_train(arguments: argparse.Namespace) -> int:
    """Train."""
    stages = STAGES if "all" in arguments.stage else tuple(arguments.stage)
    minutes = {
        "vae": arguments.vae_minutes,
        "bank": arguments.bank_minutes,
        "unet": arguments.unet_minutes,
    }
    if arguments.minutes is not None:
        if not 0 < arguments.minutes <= 10_000:
            raise BadInput(
                f"--minutes is {arguments.minutes:g}; give more than 0 and at most 10000.",
                code="out-of-range",
                field="--minutes",
            )
        shares = {"vae": 0.40, "bank": 0.12, "unet": 0.48}
        whole = sum(shares[stage] for stage in stages if stage in shares) or 1.0
        minutes = {stage: arguments.minutes * share / whole for stage, share in shares.items()}
    options = TrainOptions(
        stages=stages,
        photos=arguments.photos,
        photo_share=arguments.photo_share,
        adversary_share=arguments.adversary_share,
        bank_variants=arguments.bank_variants,
        sheet_every=arguments.sheet_every,
        out=arguments.out,
        work=arguments.work,
        source=arguments.source,
        resume=arguments.resume,
        device=arguments.device,
        seed=arguments.seed,
        vae_minutes=minutes["vae"],
        bank_minutes=minutes["bank"],
        unet_minutes=minutes["unet"],
        vae_total_minutes=arguments.vae_total_minutes,
        unet_total_minutes=arguments.unet_total_minutes,
        vae_batch=arguments.vae_batch,
        unet_batch=arguments.batch,
        vae_lr=arguments.vae_lr,
        unet_lr=arguments.lr,
        bank_scenes=arguments.bank_scenes,
        keep_bank=arguments.keep_bank,
        compile=not arguments.no_compile,
        precision=arguments.precision,
        save_every=arguments.save_every,
    )
    if options.source is not None and not options.source.is_dir():
        raise BadInput(
            f"--from {options.source} is not a folder; give a diffusers folder.", code="no-folder"
        )
    from training.train import train

    report = train(options)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Measure."""
    from training.evaluate import EvaluateOptions, evaluate

    if not 1 <= arguments.steps <= 1000:
        raise BadInput(
            f"--steps is {arguments.steps}; give 1 to 1000.", code="out-of-range", field="--steps"
        )
    options = EvaluateOptions(
        device=arguments.device,
        scenes=arguments.scenes,
        samples=arguments.samples,
        steps=arguments.steps,
        guidance=arguments.guidance,
        classifier_seconds=arguments.classifier_seconds,
        seed=arguments.seed,
        sheet=arguments.sheet,
        photos=arguments.photos,
    )
    sys.stdout.write(json.dumps(evaluate(arguments.model, options), indent=1) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; exit code 0, 1 failure, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    add_parsers(parser.add_subparsers(required=True, metavar="COMMAND"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        code: int = arguments.run(arguments)
    except WorkbenchError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, BadInput) else 1
    except KeyboardInterrupt:
        return 130
    return code
