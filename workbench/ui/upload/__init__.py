"""The Upload & train page."""
