"""Decoders for text alone: the Llama-like families without importing transformers, which takes longer than loading."""
