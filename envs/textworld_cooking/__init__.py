"""Cooking games of TextWorld, generated and compiled by the package itself."""
