"""RL on verl: the agent loop ``deepeyes``, its policy over tokens, and the reward entry."""
