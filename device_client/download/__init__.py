"""Fetches bundles: verified piece by piece, resumable after any crash, invisible until everything was verified."""
