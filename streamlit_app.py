"""The workbench in the browser: page set-up and the way to the pages, nothing else."""

from pathlib import Path

import streamlit as st

from workbench.ui.shell.router import PAGES

HERE = Path(__file__).parent

st.set_page_config(
    page_title="Drag workbench",
    # a local file: a named icon would be fetched from a font server
    page_icon=str(HERE / "workbench" / "ui" / "assets" / "icon.png"),
    layout="wide",
)
pages = [
    st.Page(path, title=title, url_path=name, default=n == 0)
    for n, (name, (path, title)) in enumerate(PAGES.items())
    if (HERE / path).exists()
]
st.navigation(pages, position="top").run()
