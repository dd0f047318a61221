#!/usr/bin/env python
"""The command `detr-d2 evaluate-results`, from a checkout."""

import sys

from detr_d2.cli.evaluate_results import main

if __name__ == "__main__":
    sys.exit(main())
