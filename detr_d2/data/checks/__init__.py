"""What is wrong with a dataset, and what is in it: before training, and for ``tools/check_dataset.py``."""
