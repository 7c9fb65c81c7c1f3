"""A world of moving shapes, and the recipe that trains the bundled pair on it."""
