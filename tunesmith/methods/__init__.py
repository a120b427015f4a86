"""Tuning methods. The shelf's table is `METHODS` in `method.py` (it needs torch); settings are in `settings.py` (it does not)."""
