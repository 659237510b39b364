"""One path per user, from files to results."""
