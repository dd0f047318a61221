"""Benchmarks of detr_d2 compared with the original code and transformers' DETR: same work, same results, in turns."""
