"""What only a GPU can tell. Skipped, with the reason, where there is none."""
