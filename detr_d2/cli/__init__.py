"""Commands of ``detr-d2``: one module each, which the scripts train_net.py, converter.py and tools/ call too.

At their top these modules import nothing that takes long, so that help and shell completion answer at once; what a
command needs is imported when it runs.
"""
