"""What the evaluation command is made of."""
