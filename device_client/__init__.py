"""Runs on the user's machine: pulls a bundle, verifies it and personalises it with forward passes only."""
