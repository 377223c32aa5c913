"""Ray Train, its workers and what they tell each other."""
