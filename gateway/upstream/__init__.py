"""Upstream: how a request reaches a backend, and what is done when it does not."""
