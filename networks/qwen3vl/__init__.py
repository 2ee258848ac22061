"""Driving Qwen3-VL through transformers: inputs, generation, and what is made of the answers."""
