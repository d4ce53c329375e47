"""The workbench in the browser: the server behind its gate, page set-up, and the way to the pages."""

import os

import streamlit as st
from starlette.middleware import Middleware

from workbench import WEB
from workbench.storage.settings import Settings
from workbench.ui.shell.gate import Gate, Hosts, Owners
from workbench.ui.shell.shell import ICON, PAGES, tidied


def main() -> None:
    """Show the page of the address; Streamlit runs this file for each look at one."""
    st.set_page_config(page_title="Drag workbench", page_icon=str(ICON), layout="wide")
    pages = [
        st.Page(path, title=title, url_path=name, default=n == 0)
        for n, (name, (path, title)) in enumerate(PAGES.items())
        if (WEB / path).exists()
    ]
    st.navigation(pages, position="top").run()


if __name__ == "__main__":
    main()
else:  # imported by `streamlit run`, which looks for an `app` and serves it
    hosts = Hosts.of(os.environ, str(st.get_option("server.address") or ""))
    owners = Owners.of(os.environ, hosts, Settings.load().folder)
    gate = Middleware(Gate, hosts=hosts, owners=owners)
    app = st.App(__file__, lifespan=tidied, middleware=[gate])
