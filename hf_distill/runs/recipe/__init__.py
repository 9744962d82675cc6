"""Recipes: YAML in, a validated `Recipe` out."""
