"""A run's model or rollouts as a repository of the Hugging Face hub: its files, its card, its
upload."""
