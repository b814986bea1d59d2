"""Money and other limits: meters, holds, grants and the stores that keep them."""
