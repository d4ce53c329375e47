"""Moving pixels and latents by geometry alone."""
