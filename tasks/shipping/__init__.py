"""What `export` and `quantize` are made of: recorded inputs, parity, recipes, timing."""
