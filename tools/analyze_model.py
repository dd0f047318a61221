#!/usr/bin/env python
"""The command `detr-d2 analyze`, from a checkout."""

import sys

from detr_d2.cli.analyze import main

if __name__ == "__main__":
    sys.exit(main())
