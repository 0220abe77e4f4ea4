"""The page and the JSON endpoint: many requests, sampled together in one batch.

A request becomes texts (`wishes.py`, `text.py`), which the engine (`engine.py`) puts into one batch
(`batch.py`) as they come. None of these knows HTTP: that is in the other files.
"""
