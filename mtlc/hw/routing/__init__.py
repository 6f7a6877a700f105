"""Records where tokens go in a mixture of experts, and what that costs."""
