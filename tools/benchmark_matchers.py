#!/usr/bin/env python
"""Run ``detr-d2 benchmark matchers``."""

import sys

from detr_d2.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main(["matchers", *sys.argv[1:]]))
