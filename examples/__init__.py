"""What matnas does, in small."""
