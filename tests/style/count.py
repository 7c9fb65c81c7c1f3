"""Print the list that matches the tree: `python -m tests.style.count`.

With paths, print each refused phrase of these files with its line: ``python -m tests.style.count pvlm/video``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.style.tree import ROOT, counts, files, refused

HEADING = """\
# What each file may still have too much of: refused phrases, lines of markdown beyond 100 columns, lines of source
# beyond 400. Printed by `python -m tests.style.count`. Numbers only shrink: mend a file, then lower its number.
"""


def main(arguments: list[str]) -> None:
    if not arguments:
        sections = [
            f"[{kind}]\n" + "".join(f'"{path}" = {number}\n' for path, number in of_files.items())
            for kind, of_files in counts().items()
        ]
        sys.stdout.write("\n".join([HEADING, *sections]))
        return
    chosen = [Path(argument).resolve() for argument in arguments]
    for path in files():
        if any(path == one or one in path.parents for one in chosen):
            for line, words, instead in refused(path.read_text(encoding="utf-8")):
                sys.stdout.write(f"{path.relative_to(ROOT)}:{line}: '{words}': say '{instead}'\n")


if __name__ == "__main__":
    main(sys.argv[1:])
