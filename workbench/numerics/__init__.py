"""The mathematics of dragging, in torch alone: no disk, no page, no model names."""
