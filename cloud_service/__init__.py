"""Prepares language models in the cloud: Fisher diagonal, sensitivity mask, 4-bit split, signed bundle."""
