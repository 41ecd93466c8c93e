"""Texts that a model writes: sampled, stopped and handed out piece by piece. Nothing here knows who asked."""
