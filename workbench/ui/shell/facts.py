"""Names and values below each other, as history and settings show what is known of a thing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import streamlit as st

from workbench.ui.shell.text import plain

LONGEST = 300  # characters of a value
_STYLE = """<style>
.wb-facts { display: grid; grid-template-columns: minmax(6.5rem, max-content) 1fr;
  gap: 0.35rem 1.1rem; margin: 0.2rem 0 0.6rem; font-size: 0.95rem; }
.wb-facts dt { margin: 0; opacity: 0.68; }
.wb-facts dd { margin: 0; overflow-wrap: anywhere; }
</style>"""


def facts_list(rows: Mapping[str, str]) -> None:
    """Show names and values; both are put in letter by letter, never as markup."""
    items = (
        f"<dt>{escape(plain(k))}</dt><dd>{escape(plain(v, LONGEST))}</dd>" for k, v in rows.items()
    )
    st.html(f'{_STYLE}<dl class="wb-facts">{"".join(items)}</dl>')
