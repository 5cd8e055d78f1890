"""Recordings of the code of Search-R1, verl-agent, IGPO and MT-GRPO, and of retrieval libraries; and their replay.

    python -m tests.search_replay DIR      # every *.json directly in DIR

The name of a file says what it holds; everything in it must come out of the project's own functions. Passages are those
of `search_corpus.jsonl` in the data folder.
"""
