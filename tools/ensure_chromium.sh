#!/bin/sh
# Make sure that the browser tests find a Chromium: one that is there, else the system's package,
# else Playwright's own download. Fails with what to install when none of these works.
set -u
python=$1

if "$python" tools/find_chromium.py >/dev/null 2>&1; then exit 0; fi

as_root=""
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as_root="sudo -n"; else as_root="none"; fi
fi
if [ "$as_root" != none ]; then
  if command -v apt-get >/dev/null 2>&1; then
    echo "Installing Chromium with apt-get ..."
    $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
  elif command -v dnf >/dev/null 2>&1; then
    echo "Installing Chromium with dnf ..."
    $as_root dnf install -y -q chromium
  fi
fi
if "$python" tools/find_chromium.py >/dev/null 2>&1; then exit 0; fi

echo "Installing Chromium with Playwright's own installer ..."
"$python" -m playwright install chromium
if "$python" tools/find_chromium.py >/dev/null 2>&1; then exit 0; fi

cat >&2 <<'END'
The browser tests need Chromium, and none could be installed. Do one of these, then run again:
  Debian, Ubuntu:  sudo apt-get install chromium
  Fedora:          sudo dnf install chromium
  macOS:           brew install --cask chromium   (or have Google Chrome installed)
  anywhere:        .venv/bin/python -m playwright install chromium
or set CHROMIUM to the browser's executable.
END
exit 1
