"""What the operator wrote down: the shape of policies, how they are read, and how they choose."""
