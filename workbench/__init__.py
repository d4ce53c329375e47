"""Drag workbench: point-drag image editing on Stable Diffusion style models.

One engine (`workbench.edit.run_edit`) serves the browser pages, the command line and the
benchmarks. Importing this package is cheap: nothing here imports torch.
"""

import os
from pathlib import Path

# torch's threads wait for each other some thousand times in a pass. By default they spin meanwhile,
# which beside any other busy program costs five times the pass (docs/benchmarks.md, Log). Read by
# OpenMP when torch is loaded, so it stands here; the numbers computed do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0"

_PACKAGE = Path(__file__).resolve().parent
# The folder with streamlit_app.py, pages/ and requirements.txt: the checkout, or, where the package
# was installed by pip, the copy that the wheel carries.
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "streamlit_app.py").is_file() else None
WEB = CHECKOUT or _PACKAGE / "web"
