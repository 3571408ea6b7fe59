"""Check data sets: rows, images, duplicates, statistics, and the report of it all."""
