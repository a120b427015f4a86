"""Engines of other makers behind `ask.Engine`: each a process of its own that is asked over HTTP."""
