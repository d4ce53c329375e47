"""The diffusion model: U-Net, DDIM, attention, LoRA, loading."""
