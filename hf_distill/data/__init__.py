"""Data sets: loading splits, and preparing text and images for a model."""
