"""Recordings of the official WebShop, and the replay of them.

    python -m tests.webshop_replay DIR      # every *.json directly in DIR

The `kind` of a file names its contents; everything in it must come out of the project's own functions, scores of
searches within 1e-4. Pages of the `html` mode are passed over: there is none here.
"""
