"""The history page: tree, search, filters, notes, ways on, bin, zips, replay, what cannot be read."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from edit_samples import add_edit, pixels
from patience import HANG
from streamlit.testing.v1 import AppTest

from workbench.app import App
from workbench.core.config import DragConfig, InversionConfig, LoraConfig
from workbench.core.record import EditRecord, JobState
from workbench.core.request import EditRequest, ModelRef, Point
from workbench.core.request import PointPair as Pair
from workbench.storage.archive.write import export_zip
from workbench.storage.files import UlidMaker
from workbench.storage.history import Store
from workbench.storage.history.folder import seal
from workbench.ui import history
from workbench.ui.history.tree import Filter, Forest, zip_maker
from workbench.ui.shell.backend import get_backend
from workbench.ui.shell.forms import inert, say
from workbench.ui.shell.workspace import Workspace

Visit = Callable[..., AppTest]


@pytest.fixture
def visit_history(app: App, visit: Visit, monkeypatch: pytest.MonkeyPatch) -> Visit:
    """`visit_history(edit=...)`: the history page of that address, run once, no model loaded."""
    monkeypatch.setattr(app, "warm_up", lambda *_: None)

    def go(**query: str) -> AppTest:
        page = visit(**query)
        page.switch_page("pages/history.py").run()
        assert not page.exception
        return page

    return go


def shown(page: AppTest) -> list[str]:
    """Ids of the edits on the page, from above."""
    opens = (b.key for b in page.button if b.key and b.key.startswith("open_"))
    return [key.removeprefix("open_") for key in opens]


def errors(page: AppTest) -> list[str]:
    return [e.value for e in page.error]


# --- the tree -----------------------------------------------------------------------------------------


def family(store: Store) -> dict[str, EditRecord]:
    """Two pictures; the first one's edit has two children and a grandchild."""
    a = add_edit(store, seed=1, prompt="a robot")
    b = add_edit(store, seed=2, prompt="a boat", status=JobState.FAILED)
    a1 = add_edit(store, after=a, prompt="a robot")
    a2 = add_edit(store, after=a, prompt="a robot", status=JobState.CANCELLED)
    a11 = add_edit(store, after=a1, prompt="a robot waving")
    return {"a": a, "b": b, "a1": a1, "a2": a2, "a11": a11}


def test_an_edit_hangs_under_the_one_it_came_from(app: App) -> None:
    made = family(app.store)
    rows = Forest(app.store).rows(Filter())
    names = {record.id: name for name, record in made.items()}
    # newest first among siblings; the family with the newest edit first
    assert [(names[r.record.id], r.depth) for r in rows] == [
        ("a", 0), ("a2", 1), ("a1", 1), ("a11", 2), ("b", 0),
    ]  # fmt: skip
    guides = {names[r.record.id]: r.guides for r in rows}
    assert guides["a2"] == (True,)  # the line goes on down to a1
    assert guides["a1"] == (False,)
    assert guides["a11"] == (False, False)


def test_children_of_what_is_not_shown_hang_under_the_nearest_that_is(app: App) -> None:
    made = family(app.store)
    app.store.bin([made["a1"].id])
    rows = {r.record.id: r for r in Forest(app.store).rows(Filter())}
    assert rows[made["a11"].id].parent == made["a"].id
    (binned,) = Forest(app.store).rows(Filter(binned=True))
    assert (binned.record.id, binned.depth) == (made["a1"].id, 0)


def test_a_circle_of_parents_ends(app: App) -> None:
    first = add_edit(app.store, seed=1)
    loop = add_edit(app.store, after=first)
    forest = Forest(app.store)
    changed = EditRecord(
        id=first.id,
        request=EditRequest.from_json({**first.request.to_json(), "parent": loop.id}),
        status=first.status,
        result=first.result,
    )
    app.store.bin([first.id])
    app.store.forget(first.id)
    app.store.commit(changed)
    assert len(forest.rows(Filter())) == 2  # the one read before
    assert len(Forest(app.store).families) >= 1


def test_page_shows_states_and_their_reasons(app: App, visit_history: Visit) -> None:
    made = family(app.store)
    page = visit_history(edit=made["b"].id)
    assert shown(page) == [made[n].id for n in ("a", "a2", "a1", "a11", "b")]
    lines = " ".join(m.value for m in page.markdown)
    assert "Failed" in lines
    assert "Cancelled" in lines
    assert any("memory ran out" in c.value for c in page.caption)  # the chosen one's reason
    assert not [b for b in page.button if b.key == "branch"]  # nothing to go on from


def test_five_hundred_edits_cost_one_page(
    app: App, visit_history: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = add_edit(app.store, seed=1)
    ids = UlidMaker()
    ids.seen(base.id)
    for _ in range(499):  # past the store, which waits for the disk after each of them
        data = {**base.to_json(), "id": ids.new(), "owner": ""}
        (app.settings.history / "edits" / f"{data['id']}.json").write_bytes(seal(data))
    asked: list[Any] = []
    real = get_backend().thumbnail
    monkeypatch.setattr(get_backend(), "thumbnail", lambda *args: asked.append(args) or real(*args))
    page = visit_history()
    assert any("500 edits" in c.value for c in page.caption)
    assert len(shown(page)) == history.PER_PAGE
    assert len(asked) == history.PER_PAGE + 1  # one each, and the family's


# --- finding ------------------------------------------------------------------------------------------


def test_search_looks_at_prompt_title_note_and_method(app: App, visit_history: Visit) -> None:
    made = family(app.store)
    app.store.annotate(made["b"].id, title="Second sail", note="the mast is bent")
    warp = add_edit(app.store, seed=3, drag=DragConfig.preset("warp"))
    page = visit_history()
    for words, wanted in (
        ("waving", ["a11"]),
        ("SAIL second", ["b"]),
        ("mast", ["b"]),
        ("nothing like it", []),
    ):
        page.text_input(key="search").set_value(words).run()
        assert not page.exception
        assert shown(page) == [made[n].id for n in wanted], words
    assert any(say("history.no_matches_remove_a_filter") == m.value for m in page.markdown)
    page.text_input(key="search").set_value("warp").run()
    assert shown(page) == [warp.id]


def test_filters(app: App, visit_history: Visit) -> None:
    made = family(app.store)
    app.store.annotate(made["a1"].id, favourite=True)
    page = visit_history()
    page.toggle(key="favourites").set_value(True).run()
    assert shown(page) == [made["a1"].id]
    page.toggle(key="favourites").set_value(False).run()
    page.button_group(key="status").set_value([JobState.FAILED]).run()
    assert shown(page) == [made["b"].id]
    page.button_group(key="status").set_value([]).run()
    page.selectbox(key="picture").set_value(made["b"].request.image.id).run()
    assert shown(page) == [made["b"].id]


def test_notes_and_favourite_are_kept_as_they_are_written(app: App, visit_history: Visit) -> None:
    edit = add_edit(app.store, seed=1).id
    page = visit_history(edit=edit)
    page.text_input(key=f"title_{edit}").set_value("Arm <b>up</b>").run()
    page.text_area(key=f"note_{edit}").set_value("keep the glow").run()
    page.button(key=f"star_off_{edit}").click().run()
    notes = app.store.notes(edit)
    assert (notes.title, notes.note, notes.favourite) == ("Arm <b>up</b>", "keep the glow", True)
    (label,) = (b.label for b in page.button if b.key == f"open_{edit}")
    assert label == inert("Arm <b>up</b>")  # shown letter by letter
    assert "<b>" not in label
    page.button(key=f"star_on_{edit}").click().run()
    assert not app.store.notes(edit).favourite


# --- going on -----------------------------------------------------------------------------------------


def test_use_these_settings_opens_the_same_work_again(app: App, visit_history: Visit) -> None:
    drag = DragConfig.preset("gooddrag", "gentle")
    edit = add_edit(app.store, seed=1, prompt="a robot", drag=drag)
    page = visit_history(edit=edit.id)
    page.button(key="reuse").click().run()
    assert not page.exception
    space = Workspace.open(app.store, page.query_params["project"])
    assert (space.image.id, space.project.prompt) == (edit.request.image.id, "a robot")
    assert space.drag == drag
    drawing = get_backend().drawing_of(edit.request)
    assert space.project.drawing == drawing.to_json()
    assert [p.to_json() for p in drawing.pairs] == [p.to_json() for p in edit.request.pairs]


def test_continue_from_here_makes_the_result_the_next_picture(
    app: App, visit_history: Visit
) -> None:
    edit = add_edit(app.store, seed=1, prompt="a robot")
    page = visit_history(edit=edit.id)
    page.button(key="branch").click().run()
    space = Workspace.open(app.store, page.query_params["project"])
    assert edit.result is not None
    assert space.image.id == edit.result.image
    assert space.get("parent") == edit.id
    assert not space.project.drawing


def test_open_in_results_goes_to_the_pictures_own_project(app: App, visit_history: Visit) -> None:
    edit = add_edit(app.store, seed=1)
    home = get_backend().project_of(edit.request)
    page = visit_history(edit=edit.id)
    page.button(key="to_results").click().run()
    assert page.query_params["project"] == home.id
    assert page.query_params["edit"] == edit.id


def test_ticked_edits_go_to_compare(app: App, visit_history: Visit) -> None:
    made = family(app.store)
    page = visit_history()
    page.checkbox(key=f"ticked_{made['a1'].id}").check().run()
    assert page.button(key="compare_ticked").disabled  # one alone
    page.checkbox(key=f"ticked_{made['a'].id}").check().run()
    page.text_input(key="search").set_value("waving").run()  # ticks stay under a filter
    page.button(key="compare_ticked").click().run()
    assert not page.exception
    assert page.query_params["edits"] == f"{made['a1'].id},{made['a'].id}"


# --- the bin ------------------------------------------------------------------------------------------


def test_delete_restore_and_remove_for_good(app: App, visit_history: Visit) -> None:
    made = family(app.store)
    edit = made["b"].id
    page = visit_history(edit=edit)
    page.session_state["history_more"] = True
    page.button(key="delete_one").click().run()
    assert edit not in shown(page)
    assert not page.session_state["history_more"], "the menu stands open for the next edit"
    assert app.store.notes(edit).binned
    page.toggle(key="bin").set_value(True).run()
    assert shown(page) == [edit]
    page.button(key="restore_one").click().run()
    assert not app.store.notes(edit).binned
    page.toggle(key="bin").set_value(False).run()
    page.checkbox(key=f"ticked_{edit}").check().run()
    page.button(key="delete_ticked").click().run()
    page.toggle(key="bin").set_value(True).run()
    page.button(key="empty_bin_really").click().run()
    assert not page.exception
    assert edit not in {r.id for r in app.store.records(binned=None)}
    assert any(say("history.the_bin_is_empty_deleted") == m.value for m in page.markdown)


# --- zips ---------------------------------------------------------------------------------------------


def test_what_a_download_holds(app: App) -> None:
    made = family(app.store)
    app.store.bin([made["b"].id])
    backend = get_backend()
    for ids, wanted in ((None, ("a", "a1", "a2", "a11")), ([made["a1"].id], ("a1",))):
        raw = zip_maker(backend, ids, with_lora=False)()
        with zipfile.ZipFile(io.BytesIO(raw)) as file:
            names = file.namelist()
            assert "index.html" in names
        found = {n.split("/")[1] for n in names if n.startswith("edits/")}
        assert found == {made[n].id for n in wanted}


def test_import_merges_and_refuses_a_hostile_zip_whole(
    app: App, visit_history: Visit, tmp_path: Any
) -> None:
    other = Store(tmp_path / "other")
    theirs = add_edit(other, seed=5, prompt="theirs")
    raw = export_zip(other)
    other.close()
    page = visit_history()
    page.file_uploader(key="history_import_0").upload("theirs.zip", raw, "application/zip").run()
    assert not page.exception
    assert any("1 edit added" in s.value for s in page.success)
    assert app.store.record(theirs.id) == theirs
    assert app.store.notes(theirs.id).imported == "theirs.zip"

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as good, zipfile.ZipFile(out, "w") as bad:
        for info in good.infolist():
            bad.writestr(info, good.read(info.filename))
        bad.writestr("../../outside.txt", b"gotcha")
    upload = page.file_uploader(key="history_import_1")
    upload.upload("evil.zip", out.getvalue(), "application/zip").run()
    assert not page.exception
    (said,) = errors(page)
    assert "outside" in said
    assert [r.id for r in app.store.records()] == [theirs.id]

    # the next file is looked at, not lost on the refused one's uploader
    page.file_uploader(key="history_import_2").upload("theirs.zip", raw, "application/zip").run()
    assert not errors(page)
    assert any("1 edit already" in s.value for s in page.success)


# --- recomputing --------------------------------------------------------------------------------------


def test_replay_says_that_the_picture_is_the_same(app: App, visit_history: Visit) -> None:
    store = app.store
    request = EditRequest(
        image=store.put_image(pixels(1)),
        pairs=(Pair(Point(20, 18), Point(24, 18)),),
        model=ModelRef(name="micro"),
        lora=LoraConfig(steps=1, batch_size=1, rank=2),
        inversion=InversionConfig(steps=4, strength=0.5),
        drag=DragConfig(steps=2),
    )
    edit = str(app.perform("edit", request))
    page = visit_history(edit=edit)
    page.button(key="replay").click().run()
    (job,) = [j for j in app.executor.recent() if j.kind == "replay"]
    assert app.executor.wait(job.id, HANG).state is JobState.DONE
    page.run()
    assert not page.exception
    assert any(inert(say("history.reproduced_the_picture_is")) == m.value for m in page.markdown)
    assert len(shown(page)) == 2  # the new one is an edit of its own
    assert app.executor.snapshot(job.id).result["expected"] == 0.0


# --- what cannot be read ------------------------------------------------------------------------------


def test_a_damaged_record_is_listed_and_the_rest_works(app: App, visit_history: Visit) -> None:
    good, bad = add_edit(app.store, seed=1), add_edit(app.store, seed=2)
    (app.settings.history / "edits" / f"{bad.id}.json").write_text("{", encoding="utf-8")
    page = visit_history()
    assert shown(page) == [good.id]
    assert any(
        say("history.files_of_the_history_could", files="1 file") in e.label for e in page.expander
    )
    listed = " ".join(m.value for m in page.markdown)
    assert bad.id in listed.replace("\\", "")


def test_an_edit_whose_pictures_are_gone_is_an_error_in_its_place(
    app: App, visit_history: Visit
) -> None:
    good, bad = add_edit(app.store, seed=1), add_edit(app.store, seed=2)
    assert bad.result is not None
    for name in (bad.result.image, bad.request.image.id):
        path = app.store.find(name)
        assert path is not None
        path.unlink()
    page = visit_history(edit=bad.id)
    assert errors(page)
    assert good.id in shown(page)
    page.button(key=f"open_{good.id}").click().run()
    assert page.query_params["edit"] == good.id


def test_an_empty_history_says_what_to_do(visit_history: Visit) -> None:
    page = visit_history()
    assert any(say("history.no_edits_yet_every_run") == m.value for m in page.markdown)
