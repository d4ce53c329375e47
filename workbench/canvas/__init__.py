"""What the user draws: arrows, mask, checklist, instant preview, overlays."""
