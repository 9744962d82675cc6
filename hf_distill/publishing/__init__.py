"""Handing a student to others."""
