"""Soft targets computed once: key, store, fill, look up."""
