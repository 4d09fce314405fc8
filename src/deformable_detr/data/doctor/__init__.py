"""What is wrong with a data set, all of it at once; what it holds; and a repaired copy."""
