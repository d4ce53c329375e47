"""Edits as one zip: to look at in any browser, to keep, and to bring into another history.

    export_zip(store, ids) -> bytes       export_file(store, path, ids)       import_zip(store, zip)

The zip holds plain files (pictures, masks, JSON), a manifest with their SHA-256, and an index.html
that shows the edits without the workbench. docs/formats.md describes it.
"""

from workbench.storage.archive.check import Limits
from workbench.storage.archive.read import Imported, import_zip
from workbench.storage.archive.write import Exported, export_file, export_zip

__all__ = ["Exported", "Imported", "Limits", "export_file", "export_zip", "import_zip"]
