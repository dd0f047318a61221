#!/usr/bin/env python
"""The command `detr-d2 predict`, from a checkout."""

import sys

from detr_d2.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
