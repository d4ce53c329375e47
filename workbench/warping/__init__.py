"""Move what the arrows hold, by geometry alone: numpy only, shared by pages, preview and methods."""
