"""Proofs of issue 4 against the real program: what is spent is what was produced, and never more than the limit.

The quick versions are in the usual suite. `pytest tests/money -m soak -s` runs the same with larger numbers, 15 minutes in
all: storms of 2,000 clients on both stores, three minutes at sixty requests per minute, twenty outages in a row.
"""
