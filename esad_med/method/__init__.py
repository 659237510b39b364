"""The ESAD method: networks, losses, scores, training, and the trained Detector."""
