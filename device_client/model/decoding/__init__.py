"""Text token by token: a prompt at once, then each next token over the keys and values of those before."""
