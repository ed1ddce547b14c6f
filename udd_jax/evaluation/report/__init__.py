"""What does a person see?  One self-contained page with numbers, sheets and plots."""
