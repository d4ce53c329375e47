"""The workbench in the browser: page set-up and the way to the pages, nothing else."""

import streamlit as st

from workbench import WEB
from workbench.ui.shell.router import ICON, PAGES

st.set_page_config(
    page_title="Drag workbench",
    page_icon=str(ICON),
    layout="wide",
)
pages = [
    st.Page(path, title=title, url_path=name, default=n == 0)
    for n, (name, (path, title)) in enumerate(PAGES.items())
    if (WEB / path).exists()
]
st.navigation(pages, position="top").run()
