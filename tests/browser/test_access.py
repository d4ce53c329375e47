"""Axe on every page, light and dark: nothing serious outside Streamlit's own frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Bench, Server, picture
from edit_samples import add_edit
from playwright.sync_api import Page

from workbench.ui.shell.workspace import Workspace, settings_of

PAGES = ("", "train", "drag", "results", "compare", "history", "settings")
BAD = ("serious", "critical")
# What Streamlit draws round and inside its widgets, and no page can change.
CHROME = (
    "[data-testid=stHeader]",
    "[data-testid=stToolbar]",
    "[data-testid=stDecoration]",
    "[data-testid=stFileUploaderDropzone]",
    "[data-testid=stElementToolbar]",
    "[data-testid=stWidgetLabelHelp]",
)


@pytest.fixture(scope="module")
def address(server: Server) -> Iterator[dict[str, str]]:
    """A project with an arrow and a finished edit, and the way to it."""
    first = add_edit(server.store, seed=71, name="Axe.png", prompt="waves")
    second = add_edit(server.store, seed=71, name="Axe.png", prompt="waves")
    space = Workspace.create(
        server.store, first.request.image, title="Axe", settings=settings_of(first.request)
    )
    name = server.project(picture(64, 48, seed=71))
    yield {"project": space.id, "edit": first.id, "edits": f"{first.id},{second.id}", "other": name}
    server.store.bin([first.id, second.id])


def findings(page: Page) -> list[str]:
    """Serious findings, each with the place and what is there."""
    options = {"resultTypes": ["violations"], "runOnly": ["wcag2a", "wcag2aa", "best-practice"]}
    context = {"exclude": [[where] for where in CHROME if page.locator(where).count()]}
    found: list[dict[str, Any]] = Axe().run(page, context, options).response["violations"]
    return [
        f"{v['id']} ({v['impact']}): {node['target']} {node['html'][:160]}"
        for v in found
        if v["impact"] in BAD
        for node in v["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_finding(
    server: Server, new_bench: Any, address: dict[str, str], scheme: str
) -> None:
    bench: Bench = new_bench(color_scheme=scheme, reduced_motion="reduce")
    said = []
    for name in PAGES:
        query = {} if not name else {"project": address["project"], "edit": address["edit"]}
        if name == "compare":
            query["edits"] = address["edits"]
        bench.open(f"/{'' if name == 'train' else name}", **query)
        bench.settle(1.2)
        bench.check()
        said += [f"{name or 'start'}: {text}" for text in findings(bench.page)]
    assert not said, "\n".join(said)


def test_axe_does_find_something(server: Server, bench: Bench) -> None:
    bench.open("/settings")
    bench.page.evaluate("document.querySelector('h1').innerHTML += '<img src=\"data:,\">'")
    assert any(text.startswith("image-alt") for text in findings(bench.page))
