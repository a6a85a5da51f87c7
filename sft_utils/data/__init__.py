"""Rows: read from files and the Hub, checked, compared, and which of their tokens carry loss."""
