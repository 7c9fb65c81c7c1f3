"""Both actors of an open engine, and the sessions over them."""
