"""Starting actors, in a process or a thread of their own, and knowing when they are gone."""
