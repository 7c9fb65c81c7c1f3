"""One answer, recorded and drawn: see `Trace`."""

from pvlm.trace.recording import Trace, make_directory

__all__ = ["Trace", "make_directory"]
