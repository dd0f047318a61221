#!/usr/bin/env python
"""The command `detr-d2 compare`, from a checkout."""

import sys

from detr_d2.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
