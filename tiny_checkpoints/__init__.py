"""Small random checkpoints in the true on-disk format, one module per model. Import the module, not this package."""
