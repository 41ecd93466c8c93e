"""Takes a model elsewhere: to transformers, to llama.cpp, to Ollama, or as its tuned values alone."""
