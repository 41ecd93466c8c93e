"""Decides, from shapes alone and before anything is loaded, how a preparation uses memory (ADR 0012)."""
