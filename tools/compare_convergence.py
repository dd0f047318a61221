#!/usr/bin/env python
"""Run ``detr-d2 benchmark convergence``."""

import sys

from detr_d2.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main(["convergence", *sys.argv[1:]]))
