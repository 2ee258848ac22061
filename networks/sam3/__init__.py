"""Driving SAM 3's video model through transformers: tracking in bounded memory, exact video in and out."""
