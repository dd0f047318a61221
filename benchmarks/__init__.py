"""Ours beside the original code and transformers' DETR: the same work, the same results, in turns."""
