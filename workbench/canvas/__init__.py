"""The user's drawing: arrows, mask, checklist, instant preview, overlays."""
