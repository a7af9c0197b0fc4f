"""Recipes: complete runs that use the package as a user would."""
