"""The embedded engine: continuous batching, rows of one batch with different adapters."""
