"""What is done to each pixel by itself: activations, and short programs of sums and products."""
