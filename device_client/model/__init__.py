"""Runs a bundle's model on this device: 4-bit codes stay packed, sensitive values are written over them."""
