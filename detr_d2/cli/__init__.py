"""Commands of ``detr-d2``."""
