#!/usr/bin/env python
"""The command `detr-d2 import-via`, from a checkout."""

import sys

from detr_d2.cli.import_via import main

if __name__ == "__main__":
    sys.exit(main())
