"""One drag over a grid of methods and parameters."""
