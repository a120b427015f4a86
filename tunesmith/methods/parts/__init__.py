"""What methods are made of, and share."""
