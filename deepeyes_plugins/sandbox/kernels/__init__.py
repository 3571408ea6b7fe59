"""What runs the cells: one contract, the kernels that ship, and the suite that any kernel passes."""
