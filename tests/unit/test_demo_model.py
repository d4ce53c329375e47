"""The architecture of `album`, and the mathematics of its training."""

import pytest
import torch
from diffusers import AutoencoderKL
from refusals import refusal

from training import config
from training.bank import Bank
from training.config import TrainOptions
from training.pictures import render_seed
from training.unet_train import (
    add_noise,
    denoising_losses,
    min_snr_weights,
    stratified_timesteps,
)
from training.vae_train import (
    kl_divergence,
    normalise_latents,
    psnr,
    reconstruct,
    reconstruction_loss,
)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return config.build_unet().eval()


def test_blocks_are_stable_diffusion_1s(unet):
    down = [type(block).__name__ for block in unet.down_blocks]
    up = [type(block).__name__ for block in unet.up_blocks]
    assert down == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert up == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert type(unet.mid_block).__name__ == "UNetMidBlock2DCrossAttn"
    vae = config.build_vae()
    assert vae.config.latent_channels == config.UNET["in_channels"] == 12
    assert not vae.config.mid_block_add_attention
    assert len(vae.config.block_out_channels) == 4  # three halvings: factor 8


def test_transformer_blocks_lie_as_in_stable_diffusion(unet):
    order = [
        name.split(".")[0] + "." + name.split(".")[1]
        for name, _ in unet.named_modules()
        if name.endswith("transformer_blocks.0")
    ]
    down = [name for name in order if name.startswith("down")]
    up = [name for name in order if name.startswith("up")]
    assert down == ["down_blocks.0", "down_blocks.1", "down_blocks.2"]  # one per layer
    assert up == [f"up_blocks.{i}" for i in (1, 1, 2, 2, 3, 3)]  # a layer more, as always
    assert len(order) == 10  # and one in the middle


def test_head_widths_suit_fused_attention(unet):
    for width in unet.config.block_out_channels:
        assert width % unet.config.attention_head_dim == 0
        assert (width // unet.config.attention_head_dim) % 8 == 0


def test_the_weights_fit_into_the_repository(unet):
    text = config.build_text_encoder(2_000, 1_998, 1_999)  # a generous vocabulary
    sizes = [sum(p.numel() for p in part.parameters()) for part in (unet, config.build_vae(), text)]
    assert 2 * sum(sizes) + 1_000_000 < config.WEIGHT_LIMIT
    assert max(sizes) < 22_000_000  # no file above 45 MB in float16
    assert sizes[0] < 30_000_000


def test_the_schedule_is_stable_diffusions():
    alphas = config.build_scheduler().alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(alphas.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)
    assert config.build_scheduler().final_alpha_cumprod == alphas[0]


def test_a_fresh_unet_predicts_nothing(unet):
    with torch.no_grad():
        out = unet(torch.randn(1, 12, 16, 16), 5, torch.randn(1, 77, 128)).sample
    assert out.abs().max() == 0


def test_the_text_encoder_pools_at_the_first_end_token():
    torch.manual_seed(0)
    model = config.build_text_encoder(600, 598, 599).eval()
    ids = torch.full((1, 77), 599)
    ids[0, 0], ids[0, 1] = 598, 7
    with torch.no_grad():
        out = model(ids)
    torch.testing.assert_close(out.pooler_output[0], out.last_hidden_state[0, 2])


def test_min_snr_weights_are_the_papers():
    snr = torch.tensor([100.0, 5.0, 1.0, 0.01], dtype=torch.float64)
    weights = min_snr_weights(snr / (1 + snr), gamma=5)
    # Hang et al. 2023: min(SNR, gamma) on the x0 error; the epsilon error is SNR times it.
    expected = torch.tensor([0.05, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)


def test_noise_keeps_unit_variance():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(64, 4, 32, 32, generator=generator)
    noise = torch.randn(64, 4, 32, 32, generator=generator)
    for alpha in (0.0, 0.3, 1.0):
        noisy = add_noise(latents, noise, torch.full((64,), alpha))
        assert float(noisy.var()) == pytest.approx(1, abs=0.02)
    assert torch.equal(add_noise(latents, noise, torch.ones(64)), latents)


def test_timesteps_are_one_from_each_slice():
    steps = stratified_timesteps(100, torch.Generator().manual_seed(3))
    assert torch.equal(steps // 10, torch.arange(100))


def test_denoising_loss_of_predicting_nothing_is_the_noise_variance(unet):
    text = config.build_text_encoder(600, 598, 599).eval()
    bank = Bank(
        mean=torch.randn(8, 12, 16, 16).half(),
        std=torch.zeros(8, 12, 16, 16).half(),
        ids=torch.full((8, 77), 599, dtype=torch.int16),
        scale=1.0,
    )
    losses = denoising_losses(unet, text, bank, batch=3, levels=(100, 900))
    assert losses.keys() == {"100", "900"}
    for loss in losses.values():
        assert loss == pytest.approx(1, abs=0.05)


def test_the_bank_draws_scaled_posterior_samples():
    count = 4_000
    bank = Bank(
        mean=torch.full((1, 4, 2, 2), 3.0).half(),
        std=torch.full((1, 4, 2, 2), 0.5).half(),
        ids=torch.arange(77, dtype=torch.int16)[None],
        scale=2.0,
    )
    latents, ids = bank.draw(count, torch.Generator().manual_seed(0))
    assert ids.shape == (count, 77)
    assert float(latents.mean()) == pytest.approx(6, abs=0.02)
    assert float(latents.std()) == pytest.approx(1, abs=0.02)


def test_kl_is_that_of_two_gaussians():
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    ).mean()
    torch.testing.assert_close(kl_divergence(mean, 2 * std.log()), expected)


def test_reconstruction_loss_of_a_constant_offset_has_no_gradient_term():
    true = torch.rand(1, 3, 8, 8)
    assert float(reconstruction_loss(true, true)) == 0
    assert float(reconstruction_loss(true + 0.1, true)) == pytest.approx(0.1 + 0.01, abs=1e-6)


def test_reconstruction_loss_of_a_ramp():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8) / 10
    zero = torch.zeros_like(ramp)
    # |e| + e^2 + 0.25 * (slope at scale 1: 0.1, at scale 2: 0.2)
    expected = 0.35 + float((ramp**2).mean()) + 0.25 * (0.1 + 0.2)
    assert float(reconstruction_loss(ramp, zero)) == pytest.approx(expected, abs=1e-6)


def test_psnr_of_a_known_error():
    true = torch.full((2, 3, 4, 4), 0.5)
    made = true + torch.tensor([0.1, 0.01])[:, None, None, None]
    torch.testing.assert_close(psnr(made, true), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)


def test_normalised_latents_have_unit_variance_and_the_same_pictures():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.tensor([3.0, -2, 0, 1, -9, -9, -9, -9]))
    pictures = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    before = reconstruct(vae, pictures / 255)
    with torch.no_grad():
        noise_before = vae.encode(pictures / 127.5 - 1).latent_dist
    normalise_latents(vae, pictures)
    torch.testing.assert_close(reconstruct(vae, pictures / 255), before, rtol=0, atol=1e-4)
    with torch.no_grad():
        after = vae.encode(pictures / 127.5 - 1).latent_dist
    assert after.mean.mean((0, 2, 3)).abs().max() < 0.05
    variance = after.mean.var((0, 2, 3)) + after.var.mean((0, 2, 3))
    assert (variance - 1).abs().max() < 0.1
    # The posterior is the same one, seen through the affine map: mean and noise scale together.
    ratio = after.std / noise_before.std
    assert (ratio.amax((0, 2, 3)) - ratio.amin((0, 2, 3))).max() < 1e-3


def test_training_seeds_are_never_held_out():
    seeds = [render_seed(s, c) for s in (0, 7, 999_999) for c in (0, 1, 500_000, 900_059)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < config.HELD_OUT_SEED - 5_000 for s in seeds)


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"stages": ("vae", "paint")}, "unknown-name", "stages"),
        ({"unet_minutes": 0}, "out-of-range", "unet_minutes"),
        ({"vae_batch": 0}, "out-of-range", None),
        ({"unet_lr": 2.0}, "out-of-range", "unet_lr"),
        ({"seed": -1}, "out-of-range", "seed"),
        ({"precision": "fp8"}, "unknown-name", "precision"),
        ({"bank_scenes": 0}, "out-of-range", "bank_scenes"),
        ({"bank_variants": 0}, "out-of-range", "bank_variants"),
        ({"photo_share": 1.5}, "out-of-range", "photo_share"),
    ],
)
def test_options_out_of_range_are_refused(change, code, field):
    with refusal(code, field):
        TrainOptions(**change)
