"""What a run's numbers mean: seven questions, each answered from a step's shards."""
