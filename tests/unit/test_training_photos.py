"""Photographs for training: the folder, crops, variants, the discriminator, several processes."""

import json

import pytest
import torch
from PIL import Image
from refusals import refusal
from torch import Generator, nn

from training.adversary import ALONE_STEPS, Adversary, build_discriminator, detail_energy
from training.bank import Bank, variant
from training.loop import Clock, Learner, Pace
from training.photos import decode, origins, read_photos
from training.pictures import PicturePool, cut
from training.team import Team, joined

CPU = torch.device("cpu")


def folder_of(tmp_path, rows, size=(256, 256)):
    for index, row in enumerate(rows):
        if "file" in row:
            Image.new("RGB", size, (index, 100, 200)).save(tmp_path / row["file"])
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path


def test_lines_become_photographs_and_marked_ones_are_held_out(tmp_path):
    rows = [
        {"file": "a.png", "caption": "a cat", "weight": 2, "source": "s", "licence": "CC0"},
        {
            "file": "b.png",
            "caption": ["a dog", "a photo of a dog"],
            "source": "s",
            "licence": "CC0",
        },
        {"file": "c.png", "caption": "a bird", "held_out": True},
    ]
    training, held_out = read_photos(folder_of(tmp_path, rows))
    assert [photo.captions for photo in training] == [("a cat",), ("a dog", "a photo of a dog")]
    assert [photo.weight for photo in training] == [2.0, 1.0]
    assert [photo.path.name for photo in held_out] == ["c.png"]
    assert origins(training) == [{"source": "s", "licence": "CC0", "pictures": 2}]


def test_without_marks_one_in_twenty_is_held_out_always_the_same(tmp_path):
    rows = [{"file": f"{index}.png", "caption": "x"} for index in range(45)]
    training, held_out = read_photos(folder_of(tmp_path, rows, (4, 4)))
    assert (len(training), len(held_out)) == (43, 2)
    again = read_photos(folder_of(tmp_path, list(reversed(rows)), (4, 4)))[1]
    assert {photo.path for photo in again} == {photo.path for photo in held_out}


def test_pictures_of_any_shape_are_cut_to_the_middle(tmp_path):
    rows = [{"file": "a.png", "caption": ""}, {"file": "b.png", "caption": ""}]
    training, _ = read_photos(folder_of(tmp_path, rows, (600, 300)))
    decoded = decode(training)
    assert decoded.shape == (2, 3, 256, 256)
    assert decoded[1, :, 7, 9].tolist() == [1, 100, 200]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "not-json"),
        ('{"caption": "x"}', "no-file"),
        ('{"file": "a.png", "caption": 3}', "wrong-type"),
        ('{"file": "a.png", "caption": "x", "weight": -1}', "out-of-range"),
        ('{"file": "b.png", "caption": "x"}', "missing-file"),
        ('{"file": "a.png", "caption": "x"}', "too-few"),
    ],
)
def test_a_wrong_line_is_told(tmp_path, line, code):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(line, encoding="utf-8")
    with refusal(code):
        read_photos(tmp_path)


def test_a_folder_without_captions_and_a_file_that_is_no_picture_are_told(tmp_path):
    with refusal("no-captions"):
        read_photos(tmp_path)
    rows = [{"file": "a.png", "caption": ""}, {"file": "b.png", "caption": ""}]
    training, _ = read_photos(folder_of(tmp_path, rows))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with refusal("unreadable"):
        decode(training)


def test_crops_are_pieces_of_the_picture_or_of_its_mirror_image():
    generator = Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8)
    index = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2])
    crops = (cut(pictures, index, 16, generator) * 255).round().to(torch.uint8)
    mirrored = 0
    for crop, number in zip(crops, index.tolist(), strict=True):
        windows = pictures[number].unfold(1, 16, 1).unfold(2, 16, 1)  # [3,5,9,16,16]
        plain = (windows == crop[:, None, None]).all(-1).all(-1).all(0).any()
        turned = (windows == crop.flip(-1)[:, None, None]).all(-1).all(-1).all(0).any()
        assert plain or turned
        mirrored += int(turned)
    assert 0 < mirrored < len(index)


def test_a_draw_holds_its_share_of_photographs_by_their_weights():
    photos = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
    photos[1] = 255
    pool = PicturePool(4, 4, 0, CPU, (photos, torch.tensor([0.0, 1.0])), photo_share=0.5)
    pool.fill(4)
    drawn = pool.draw(8, Generator().manual_seed(0), side=64)
    assert drawn.shape == (8, 3, 64, 64)
    assert bool((drawn[:4] == 1).all())  # the other photograph has no weight
    assert bool((drawn[4:].flatten(1).std(1) > 0).all())


def test_the_bank_draws_photographs_by_weight_and_scenes_evenly():
    rows = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 12, 2, 2)
    ids = torch.arange(10, dtype=torch.int16)[:, None].expand(10, 77)
    weights = torch.tensor([1.0, 0.0, 3.0])  # rows 0 and 1, 2 and 3, 4 and 5; scenes from 6 on
    bank = Bank(rows.half(), torch.zeros_like(rows).half(), ids, 1.0, weights, 2, 0.75)
    latents, drawn = bank.draw(4_000, Generator().manual_seed(0))
    counts = torch.bincount(drawn[:, 0], minlength=10) / 4_000
    expected = torch.tensor([0.094, 0.094, 0, 0, 0.281, 0.281, 0.0625, 0.0625, 0.0625, 0.0625])
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.025)
    assert torch.equal(latents[:, 0, 0, 0], drawn[:, 0].float())


def test_variants_are_mirrored_or_cut_closer():
    generator = Generator().manual_seed(1)
    ramp = torch.linspace(0, 1, 256).expand(2, 3, 256, 256).contiguous()
    assert torch.equal(variant(ramp, 0, generator), ramp)
    assert torch.equal(variant(ramp, 1, generator), ramp.flip(-1))
    closer = variant(ramp, 2, generator)
    slope = (closer[:, 0, 128, 200] - closer[:, 0, 128, 50]) / (
        ramp[0, 0, 0, 200] - ramp[0, 0, 0, 50]
    )
    assert bool((slope > 0.84).all() and (slope < 1).all())
    assert bool((variant(ramp, 3, generator)[:, 0, 128].diff() <= 1e-6).all())


def test_detail_is_what_a_small_blur_takes_away():
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert float(detail_energy(flat)) == pytest.approx(0, abs=1e-12)
    checks = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)
    assert float(detail_energy(checks)) == pytest.approx(0.25, rel=1e-5)  # all but the mean


def test_a_discriminators_gradient_is_a_share_of_the_reconstructions():
    torch.manual_seed(0)
    adversary = Adversary(Team(), CPU, bf16=False)
    made, of_loss = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 32, 32) * 1e-3
    assert float(adversary.gradient(made, of_loss).abs().max()) == 0  # it learns alone at first
    adversary.steps = 2 * ALONE_STEPS
    added = adversary.gradient(made, of_loss)
    share = added.square().mean().sqrt() / of_loss.square().mean().sqrt()
    assert float(share) == pytest.approx(adversary.share, rel=1e-3)
    assert all(p.grad is None for p in adversary.net.parameters())


def test_the_share_follows_the_detail_that_is_missing_or_too_much():
    adversary = Adversary(Team(), CPU, bf16=False)
    adversary.steps = 2 * ALONE_STEPS
    true = torch.rand(4, 3, 32, 32) * 2 - 1
    before = adversary.share
    adversary.learn(true, torch.nn.functional.avg_pool2d(true, 3, 1, 1))
    assert adversary.steer()["detail"] < 0.5
    assert adversary.share > before
    raised = adversary.share
    adversary.learn(true, 2 * true)
    assert adversary.steer()["detail"] == pytest.approx(4, rel=1e-3)
    assert adversary.share < raised


def test_the_discriminator_learns_to_tell_two_textures():
    torch.manual_seed(0)
    adversary = Adversary(Team(), CPU, bf16=False)
    true, made = torch.randn(4, 3, 32, 32) * 0.3, torch.zeros(4, 3, 32, 32)
    for _ in range(30):
        adversary.learn(true, made)
    with torch.no_grad():
        assert float(adversary.net(true).mean()) > float(adversary.net(made).mean()) + 0.5


def test_a_patch_sees_46_pixels():
    net = build_discriminator(16)
    out = net(torch.zeros(1, 3, 128, 128))
    assert out.shape == (1, 1, 16, 16)


def _two_steps(rank, world, port, path):
    import os

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
    )  # fmt: skip
    torch.set_num_threads(1)
    with joined(CPU) as (team, device):
        torch.manual_seed(rank)  # unlike starts: the first one's counts
        module = nn.Linear(4, 2)
        learner = Learner({"net": module}, lr=0.1, ema_decay=0.9, team=team)
        pace = Pace(Clock(60.0 + 100 * rank, 60.0 + 100 * rank), team, 2, device)
        for step in range(4):
            inputs = torch.full((3, 4), float(1 + rank + step))
            module(inputs).square().mean().backward()
            learner.step(0.5, 3)
            pace.tick()
        told = team.told([float(rank), 5.0], device)
        torch.save(
            {"weights": module.state_dict(), "seen": learner.seen, "told": told,
             "fraction": pace.fraction},
            path / f"{rank}.pt",
        )  # fmt: skip


def test_two_processes_keep_the_same_weights_clock_and_count(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_two_steps, (2, port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor, second["weights"][name])
    assert first["seen"] == second["seen"] == 4 * 3 * 2
    assert first["told"] == second["told"] == [0.0, 5.0]
    assert first["fraction"] == second["fraction"]

    # One process that sees both halves takes the same steps.
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    learner = Learner({"net": module}, lr=0.1, ema_decay=0.9)
    for step in range(4):
        for rank in (0, 1):
            (module(torch.full((3, 4), float(1 + rank + step))).square().mean() / 2).backward()
        learner.step(0.5, 6)
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, first["weights"][name], rtol=1e-5, atol=1e-6)
