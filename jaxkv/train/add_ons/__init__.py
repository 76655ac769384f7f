"""What is added to a frozen or trained decoder, and trained: one idea a file."""
