"""The score stage: rewards from the verifier, then what models say of every token."""
