"""Pure functions of tensors: one value for each row or token."""
