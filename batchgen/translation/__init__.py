"""Translates a distilabel `Pipeline` that was written in Python into jobs.

Nothing here imports distilabel: the objects come from the caller, and are told apart by the names of their classes.
"""
