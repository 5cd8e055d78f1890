"""Conversations of two people with goals of their own (SOTOPIA)."""
