"""What goes on in one answer, recorded, and the pictures of it: see `Trace`."""

from pvlm.trace.recording import Trace, make_directory

__all__ = ["Trace", "make_directory"]
