"""Training: the one loop, and what each of the three trainings hands to it."""
