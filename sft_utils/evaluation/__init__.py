"""Answers measured: metrics, intervals, comparisons, and what held-out rows tell of any model."""
