"""What the scores are worth: arrays in, numbers out."""
