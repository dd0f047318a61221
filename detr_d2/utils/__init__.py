"""What every other subpackage may use: box operations, files, errors, precision."""
