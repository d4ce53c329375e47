"""Compare: two to six edits against each other, and one drag over a grid of settings."""

from __future__ import annotations

from workbench.ui import compare
from workbench.ui.shell import page

page("Compare", "Edits side by side, and one drag in many variants.", compare.body)
