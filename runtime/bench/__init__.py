"""How long explanations take on this machine."""
