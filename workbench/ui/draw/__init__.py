"""The Mask & points page."""
