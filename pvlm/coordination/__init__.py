"""The pure part of a session: state machine, events, validation, statistics. No I/O, no torch, no clock."""
