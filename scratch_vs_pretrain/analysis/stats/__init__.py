"""Statistics of paired runs, and what follows from them."""
