"""The gateway in front of a real llama.cpp server: opt in with -m llama."""
