"""BabyAI in words, as AgentGym plays it."""
