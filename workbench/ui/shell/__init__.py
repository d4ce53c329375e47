"""What every page shares: layout, routing, state, backend."""
