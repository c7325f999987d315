"""What is trained for one task: prefix and head, how they start, and how they are exported."""
