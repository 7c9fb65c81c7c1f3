"""Draft and target as actors: a mailbox, a backend, a loop."""
