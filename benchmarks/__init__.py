"""Benchmarks of detr_d2 beside the original code and transformers' DETR: same work, same results, in turns."""
