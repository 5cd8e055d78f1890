"""How different projects play and grade questions: prompts, parsing, observations, turn limits, grades."""
