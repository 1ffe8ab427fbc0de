"""What the kernels are compared with: the same work in other libraries and in plain torch."""
