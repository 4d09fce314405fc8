"""What is wrong with a dataset, all of it at once; what it holds; and a repaired copy."""
