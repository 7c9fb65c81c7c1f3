"""Whether this machine can have the backend ``native``."""

from __future__ import annotations

import os
import platform
import shutil

NATIVE = platform.machine() == "x86_64" and any(map(shutil.which, [os.environ.get("CC", "cc"), "gcc", "clang"]))
"""An x86-64 processor and a C compiler; without them its tests are skipped."""
NOT_NATIVE = "the backend 'native' needs an x86-64 processor and a C compiler"
