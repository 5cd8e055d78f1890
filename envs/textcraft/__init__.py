"""Craft an item in the recipes of Minecraft (docs/environments/textcraft.md)."""
