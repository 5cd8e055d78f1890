"""Questions of reasoning-gym."""
