"""Scenes with known motion, and the small model that is trained on them and ships."""
