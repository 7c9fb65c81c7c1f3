"""What goes on in one answer, recorded, and the pictures of it: see `Trace`."""

from pvlm.trace.trace import Trace, make_directory

__all__ = ["Trace", "make_directory"]
