"""Kokoro-82M around the `kokoro` and `misaki` packages: text to phonemes, checkpoints read strictly, voices, engines."""
