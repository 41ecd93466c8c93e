"""The backend that is compiled for this CPU: kernels.cpp, how it is built once, and its face to the rest."""
