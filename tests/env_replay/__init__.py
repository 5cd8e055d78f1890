"""Recordings of the reference implementations of environments, and their replay.

    python -m tests.env_replay DIR      # every *.json in DIR and in its subfolders

There is a module for each environment: its `KINDS` say which files it replays, and `__main__` lists them. Everything in
a file must come out of the project's own environment.
"""
