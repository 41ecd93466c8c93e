"""A run, or several side by side, as self-contained HTML pages."""
