"""requirements.txt: everything that is imported, nothing else, each pinned to one release; its installer."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tools"))
import install  # noqa: E402

OPTIONAL = {
    "ray",
    "triton",
    "pillow_heif",
}  # requirements-dev.txt; with torch; where HEIC is wanted
OURS = {"workbench", "benchmarks", "training", "pages"}


def imported() -> set[str]:
    """The first names of all modules that the program imports, wherever in a file that stands."""
    names = set()
    for file in (
        REPO / "streamlit_app.py",
        *(f for d in sorted(OURS) for f in (REPO / d).rglob("*.py")),
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def pins() -> dict[str, str]:
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("#")[0].strip() for line in lines]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", line) for line in pinned if line)
    return dict(line.split("==") for line in pinned if line)


def test_what_is_imported_is_pinned_and_what_is_pinned_is_imported() -> None:
    owners = importlib.metadata.packages_distributions()
    packages = {
        distribution.lower().replace("_", "-")
        for name in imported() - OPTIONAL
        for distribution in owners[name]
    }
    assert packages == set(pins())


def test_the_tests_run_on_what_is_pinned() -> None:
    here = {name: importlib.metadata.version(name).partition("+")[0] for name in pins()}
    assert here == pins()


# --- tools/install.py --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "nvidia", "own", "indices"),
    [
        (
            "Linux",
            False,
            [],
            [[install.CPU_BUILDS], []],
        ),  # PyPI when the CPU builds are out of reach
        ("Linux", True, [], [[]]),
        ("Darwin", False, [], [[]]),
        ("Linux", False, ["find-links"], [[]]),  # a person's own mirror is not passed over
        ("Linux", True, ["index-url"], [[]]),
    ],
)
def test_where_torch_comes_from(
    system: str, nvidia: bool, own: list[str], indices: list[list[str]]
) -> None:
    sources = install.torch_sources(system, nvidia=nvidia, own=own)
    assert [more[1:2] for _, more in sources] == indices
    assert all(said for said, _ in sources)


def test_a_torch_that_is_here_is_kept_in_whichever_build() -> None:
    pin = install.pinned(REPO / "requirements.txt", "torch")
    assert pin == f"torch=={pins()['torch']}"
    assert install.here(pin)
    assert not install.here("torch==0.1")
    assert not install.here("no-such-package==1")


def test_the_installer_counts_what_pip_fetches_and_never_falls_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(install.time, "monotonic", lambda: now[0])
    told = install.Told()
    told.hear("Collecting torch==2.13.0\n")
    told.alive()
    assert capsys.readouterr().out == ""  # not long ago
    now[0] += install.EVERY
    told.alive()
    assert "torch==2.13.0" in capsys.readouterr().out
    told.hear("  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl.metadata (29 kB)\n")
    told.hear("Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (190.5 MB)\n")
    told.hear("Downloading tiny-1-py3-none-any.whl (500 kB)\n")
    assert (told.files, told.bytes) == (2, 191e6)
    assert "190.5 MB" in capsys.readouterr().out
    assert told.total().startswith("2 files fetched, 191 MB")


def test_the_installer_runs_pip_and_reports_its_failure(capsys: pytest.CaptureFixture[str]) -> None:
    told = install.Told()
    code, lines = install.pip(told, "--no-index", "there-is-no-such-package==0.0")
    assert code != 0
    assert install.failed(lines) == 1
    assert "there-is-no-such-package" in capsys.readouterr().out


def test_the_lock_holds_every_pin_but_torch_with_hashes() -> None:
    text = (REPO / "requirements.lock").read_text(encoding="utf-8")
    entries = [e for e in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if "==" in e]
    locked = dict(re.match(r"([\w.-]+)==([^\s;]+)", e).groups() for e in entries)  # type: ignore[union-attr]
    expected = {name: version for name, version in pins().items() if name != "torch"}
    assert {name: locked.get(name) for name in expected} == expected
    assert all("--hash=sha256:" in e for e in entries)
    assert not {n for n in locked if n.startswith(("torch", "nvidia", "cuda", "triton"))}
