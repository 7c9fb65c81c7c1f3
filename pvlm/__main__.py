"""``python -m pvlm`` is the command ``pvlm``."""

import sys

from pvlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
