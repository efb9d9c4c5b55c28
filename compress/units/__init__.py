"""What is kept or removed as one: weights, blocks, patterns, channels."""
