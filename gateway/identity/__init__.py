"""Who asks: principals, and the keys that prove them."""
