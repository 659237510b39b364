"""Jinja templates of the reports."""
