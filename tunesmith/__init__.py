"""Tunesmith fine-tunes large language models and proves each step."""

__version__ = "0.1.0"
