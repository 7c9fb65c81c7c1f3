"""What the settings of an engine and the options of an answer share: checks, documentation and keyword types."""
