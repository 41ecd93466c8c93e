"""The rows of one run, and the losses of their answers; rows, prompts and tokens are ``shared.tasks``."""
