"""A module that ends the process when it is imported. For tests of plug-ins."""

raise SystemExit(3)
