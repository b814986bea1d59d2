"""What is on the wire, as pure functions over bytes and parsed JSON."""
