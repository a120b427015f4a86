"""One base model, many adapters: an OpenAI-compatible server."""
