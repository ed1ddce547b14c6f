"""What are the numbers?  Functions from arrays to numbers: distances, scores, likelihood."""
