"""Inference graphs that no well-kept library ships, in plain PyTorch. Importing this package loads nothing heavy."""
