"""The Compare page and sweeps."""
