"""The backend that is compiled for this CPU: its kernels, how it is built once, and its face to the rest."""
