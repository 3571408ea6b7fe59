"""Tools of the agent, one module each."""
