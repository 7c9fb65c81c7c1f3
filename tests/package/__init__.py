"""The package: version, metadata, and the page on an index."""
