"""A model in a GGUF file: its header read within bounds, and the Hugging Face folder that it stands for."""
