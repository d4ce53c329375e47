"""Write requirements.lock: every package below requirements.txt, pinned, with the hashes of its files.

    make lock

uv resolves for all systems at once. torch and what only its CUDA build brings are left out: which build of
torch fits depends on the machine, and tools/install.py chooses it by the version that is pinned.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LOCK = REPO / "requirements.lock"
TORCH = re.compile(r"(torch|triton|cuda-\w+|nvidia-[\w-]+)==")
HEAD = "# Written by `make lock` from requirements.txt. torch is chosen by tools/install.py.\n"


def main() -> int:
    """Resolve, drop torch's part, and write the file; returns uv's exit code."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "requirements.txt", "--universal",
               "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate",
               "--quiet"]  # fmt: skip
    done = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        entries = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)
        LOCK.write_text(HEAD + "".join(e for e in entries if not TORCH.match(e)), encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
