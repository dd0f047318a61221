"""The YAML files, installed as ``detr_d2.configs``."""
