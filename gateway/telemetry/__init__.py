"""What is seen: metrics, traces, logs and usage records."""
