"""What several operations share; nothing here is an operation by itself."""
