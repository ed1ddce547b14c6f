"""What does a reader see?  One self-contained page with numbers, images and plots."""
