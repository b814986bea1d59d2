"""Downstream: what the client talks to, and the only package that knows Starlette."""
