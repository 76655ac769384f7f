"""What a slot holds, and the pool of pages that holds the slots."""
