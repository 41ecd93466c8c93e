"""Predictions from shapes alone, before anything is loaded; nothing here imports torch or transformers."""
