"""The methods that ESAD is compared with; each learns from samples and semi-labels, and scores."""
