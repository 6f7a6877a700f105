"""Records where tokens go in a mixture of experts, and works out what that costs."""
