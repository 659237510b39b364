"""Screening of slides and X-rays with end-to-end deep semi-supervised anomaly detection."""
