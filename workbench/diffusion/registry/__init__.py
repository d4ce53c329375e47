"""Models by name, folder or file: what is known, where it lies, how it is loaded.

specs.py     ModelSpec, the built-in entries, models.toml          no torch
files.py     the files of a model on this disk, and its fingerprint  no torch
download.py  fetching a hub model, when asked                       no torch
loading.py   files -> checked torch modules
"""

from __future__ import annotations

from workbench.diffusion.registry.files import (
    ModelFiles,
    find_files,
    fingerprint,
    native_size,
)
from workbench.diffusion.registry.specs import BUILTIN, ModelSpec, Registry

__all__ = [
    "BUILTIN",
    "ModelFiles",
    "ModelSpec",
    "Registry",
    "find_files",
    "fingerprint",
    "native_size",
]
