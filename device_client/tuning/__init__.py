"""Zeroth-order fine-tuning of a bundle's sensitive values. ``loop`` is the page to read first."""
