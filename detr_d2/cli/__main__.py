"""Start of ``python -m detr_d2.cli``, the same as ``detr-d2``."""

import sys

from detr_d2.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
