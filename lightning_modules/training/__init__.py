"""What stages are built from: the loop of a stage, its objectives' families, optimizer, average."""
