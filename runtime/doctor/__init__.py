"""What this machine can run, and whether it answers rightly."""
