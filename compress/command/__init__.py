"""What `kerf prune` is made of: flags, what they ask for, and what is printed of it."""
