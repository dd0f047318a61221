#!/usr/bin/env python
"""The command `detr-d2 overfit`, from a checkout."""

import sys

from detr_d2.cli.overfit import main

if __name__ == "__main__":
    sys.exit(main())
