"""One URL in front of every language model: routed by policy, metered exactly, traced end to end."""

__version__ = "0.1.0"
