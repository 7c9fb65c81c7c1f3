"""One answer, recorded and drawn: see `Trace`."""

from pvlm.trace.trace import Trace, make_directory

__all__ = ["Trace", "make_directory"]
