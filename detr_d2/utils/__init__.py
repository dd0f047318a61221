"""Helpers of all other subpackages: box operations, files, errors, precision, memory."""
