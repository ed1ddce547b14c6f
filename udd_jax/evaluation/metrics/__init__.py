"""Numbers from arrays: agreement, feature distances, caption scores, likelihood."""
