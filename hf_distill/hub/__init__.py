"""Handing a student to others; knows no recipe and no trainer."""
