"""Drag workbench: point-drag image editing on Stable Diffusion style models.

One engine (`workbench.edit.run_edit`) serves the browser pages, the command line and the
benchmarks. Importing this package is cheap: nothing here imports torch.
"""

import os
from pathlib import Path

# torch's threads wait for each other some thousand times in a pass. GNU's OpenMP has them spin for
# 300,000 turns first, which takes the core from whoever they wait for when other programs are busy
# (twice the time of an edit); no spinning at all (OMP_WAIT_POLICY=PASSIVE) costs as much on idle cores.
# docs/benchmarks.md, Log, has the figures. Read when torch is loaded; the numbers do not depend on it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.2.0"

_PACKAGE = Path(__file__).resolve().parent
# The folder with streamlit_app.py, pages/ and requirements.txt: the checkout, or, where the package
# was installed by pip, the copy that the wheel carries.
CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "streamlit_app.py").is_file() else None
WEB = CHECKOUT or _PACKAGE / "web"
