"""Print the path of the Chromium that the browser tests use; exit 1 when there is none."""

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def find_chromium() -> str | None:
    """Look at $CHROMIUM, the PATH, macOS's applications, then Playwright's own download."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    for path in MAC:
        if Path(path).exists():
            return path
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as p:
        own = p.chromium.executable_path
    return own if Path(own).exists() else None


if __name__ == "__main__":
    path = find_chromium()
    if path is None:
        sys.exit(1)
    sys.stdout.write(path + "\n")
