"""Recordings of the official WebShop, and the replay of them.

    python -m tests.webshop_replay DIR      # every *.json directly in DIR

What a file holds is told by its `kind`; everything in it must come out of the project's own functions, scores of
searches within 1e-4. Pages of the `html` mode are passed over: there is none here.
"""
