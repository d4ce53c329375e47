"""Files, locks, cache, settings, history and archive."""
