"""Known vulnerabilities and licences of what requirements.lock installs: `make audit`, also in `make check`.

Exit code 1 when a locked release has a known vulnerability or a licence that this project cannot carry.
A database that cannot be reached is said and is not a failure: a check without a network must still end.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
LOCK = REPO / "requirements.lock"
# Licences whose terms would reach this Apache-2.0 project; LGPL and MPL libraries may be used as they are.
REFUSED = re.compile(r"\b(AGPL|(?<!L)GPL|GNU (Affero )?General Public)", re.IGNORECASE)


def json_of(*command: str) -> tuple[Any, str]:
    """(what a tool printed as JSON, or None; the end of its errors)."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", *command], cwd=REPO, capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout), ""
    except ValueError:
        return None, " ".join(done.stderr.split())[-200:]


def vulnerabilities() -> list[str]:
    """One line per known vulnerability of a locked release; prints how many could be looked up."""
    found, why = json_of("pip_audit", "-r", str(LOCK), "--disable-pip", "--no-deps", "-f", "json",
                         "--progress-spinner", "off")  # fmt: skip
    if found is None:
        print(f"vulnerabilities: the database could not be reached ({why})")
        return []
    packages = found["dependencies"]
    known = [p for p in packages if "skip_reason" not in p]
    if not known:
        print(f"vulnerabilities: the database could not be reached for any of {len(packages)}")
    else:
        print(f"vulnerabilities: {len(known)} of {len(packages)} packages looked up")
    return [
        f"{p['name']} {p['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'none'}"
        for p in known for v in p["vulns"]
    ]  # fmt: skip


def licences() -> list[str]:
    """One line per locked package under a refused licence; prints how many have which."""
    found, why = json_of("piplicenses", "--format=json", "--from=mixed")
    if found is None:
        return [f"licences could not be listed: {why}"]
    names = {
        n.lower().replace("_", "-") for n in re.findall(r"^([\w.-]+)==", LOCK.read_text(), re.M)
    }
    ours = [p for p in found if p["Name"].lower().replace("_", "-") in names]
    for licence, count in Counter(p["License"] for p in ours).most_common():
        print(f"  {count:3} {licence[:80]}")
    return [f"{p['Name']}: {p['License']}" for p in ours if REFUSED.search(p["License"])]


def main() -> int:
    """Print both; 1 when something is wrong."""
    wrong = vulnerabilities() + licences()
    for line in wrong:
        print(f"X  {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
