"""The stages around the drag: preparation, crop, memory, previews, text to image."""
