"""The OpenAI API over any engine."""
