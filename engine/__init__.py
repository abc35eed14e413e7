"""How a run is done: everything that happens inside torchrun, and what prepares it."""
