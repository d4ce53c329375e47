"""Drag workbench: point-drag image editing on Stable Diffusion style models.

One engine (`workbench.edit.run_edit`) serves the browser pages, the command line and the
benchmarks. Importing this package is cheap: nothing here imports torch.
"""

__version__ = "0.1.0"
