"""A package, so that a file here may have the name of a file one level up."""
