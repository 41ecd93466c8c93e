"""Turns a causal language model into a bundle. ``prepare.py`` is the page to read first."""
